# ResNet-44 on CIFAR-100: the plain run.
_base_ = 'resnet20_cifar100.py'

model = dict(backbone=dict(depth=44))
