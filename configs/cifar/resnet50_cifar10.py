# ResNet-50 on CIFAR-10, the stock net: the plain run.
_base_ = [
    'mmpretrain::_base_/models/resnet50_cifar.py',
    '../_base_/datasets/cifar10_affine.py',
    '../_base_/schedules/cifar_120e.py',
    'mmpretrain::_base_/default_runtime.py',
]
