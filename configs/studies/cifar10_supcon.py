# The CIFAR-10 study with SupCon. SupCon does not read the records; it inherits the
# LossTransform config to see the same batches.
_base_ = 'cifar10_lt.py'

model = dict(
    head=dict(
        _delete_=True,
        type='lt_mm.SupConHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    )
)
