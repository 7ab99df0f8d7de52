# ResNet-20 on CIFAR-10 with SupCon, the contrastive baseline: the positives of a sample are
# all samples of its class. SupCon does not read the records; it inherits the LossTransform
# config to see the same batches.
_base_ = 'resnet20_cifar10_lt.py'

model = dict(
    head=dict(
        _delete_=True,
        type='lt_mm.SupConHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    )
)
