# ResNet-110 on CIFAR-100 with LossTransform, every image four times an epoch.
_base_ = 'resnet20_cifar100_lt.py'

model = dict(backbone=dict(depth=110))
# The paper's warm-up: so deep a network does not start to learn at 0.1.
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=400),
    _base_.param_scheduler,
]
