# ResNet-44 on CIFAR-100 with LossTransform, every image four times an epoch.
_base_ = 'resnet20_cifar100_lt.py'

model = dict(backbone=dict(depth=44))
