# ResNet-44 on CIFAR-10: the plain run.
_base_ = [
    '../_base_/datasets/cifar10_affine.py',
    '../_base_/schedules/cifar_120e.py',
    'mmpretrain::_base_/default_runtime.py',
]

model = dict(
    type='ImageClassifier',
    backbone=dict(type='lt_mm.CifarResNet', depth=44),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')
    ),
)
