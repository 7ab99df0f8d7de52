# DenseNet-40 (k = 12) on CIFAR-100: the plain run.
_base_ = [
    '../_base_/datasets/cifar100_affine.py',
    '../_base_/schedules/cifar_120e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='lt_mm.CifarDenseNet', depth=40, growth_rate=12),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=448,  # 16 + 3 * 12 * 12
        loss=dict(type='CrossEntropyLoss'),
    ),
)
