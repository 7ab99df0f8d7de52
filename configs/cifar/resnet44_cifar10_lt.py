# ResNet-44 on CIFAR-10 with LossTransform, every image four times an epoch.
_base_ = 'resnet20_cifar10_lt.py'

model = dict(backbone=dict(depth=44))
