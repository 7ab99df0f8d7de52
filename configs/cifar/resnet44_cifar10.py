# ResNet-44 on CIFAR-10: the plain run.
_base_ = 'resnet20_cifar10.py'

model = dict(backbone=dict(depth=44))
