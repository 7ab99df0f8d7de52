# DenseNet-40 (k = 12) on CIFAR-100 with LossTransform, every image four times an epoch.
_base_ = 'resnet20_cifar100_lt.py'

model = dict(
    backbone=dict(_delete_=True, type='lt_mm.CifarDenseNet', depth=40, growth_rate=12),
    head=dict(head=dict(in_channels=448)),  # 16 + 3 * 12 * 12
)
