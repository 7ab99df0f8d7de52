# ResNet-20 on CIFAR-10 with mixup in every batch, as in its paper.
_base_ = 'resnet20_cifar10.py'

model = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=1.0)]))
