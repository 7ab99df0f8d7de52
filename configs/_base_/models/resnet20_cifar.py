# ResNet-20 for CIFAR-10, of the family of 6n + 2 layers in the ResNet paper.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='lt_mm.CifarResNet', depth=20),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')
    ),
)
