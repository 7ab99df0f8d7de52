# DenseNet-40 (k = 12) on CIFAR-100: the plain run.
_base_ = 'resnet20_cifar100.py'

model = dict(
    backbone=dict(_delete_=True, type='lt_mm.CifarDenseNet', depth=40, growth_rate=12),
    head=dict(in_channels=448),  # 16 + 3 * 12 * 12
)
