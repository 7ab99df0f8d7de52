# ResNet-110 on CIFAR-100: the plain run.
_base_ = [
    '../_base_/datasets/cifar100_affine.py',
    '../_base_/schedules/cifar_120e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='lt_mm.CifarResNet', depth=110),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=100, in_channels=64, loss=dict(type='CrossEntropyLoss')
    ),
)

# The paper's warm-up: with 0.1 at once so deep a net does not start to learn.
param_scheduler = [
    dict(type='ConstantLR', factor=0.1, by_epoch=False, begin=0, end=400),
    dict(type='MultiStepLR', by_epoch=True, milestones=[60, 90], gamma=0.1),
]
