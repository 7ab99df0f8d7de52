# ResNet-20 on CIFAR-10: the plain run.
_base_ = [
    '../_base_/models/resnet20_cifar.py',
    '../_base_/datasets/cifar10_affine.py',
    '../_base_/schedules/cifar_120e.py',
    'mmpretrain::_base_/default_runtime.py',
]
