# ResNet-20 on CIFAR-10 with SupCon, the contrastive baseline, on the same batches as
# resnet20_cifar10_lt.py: the positives of a sample are all samples of its class.
_base_ = 'resnet20_cifar10.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=4),
    # SupCon reads no record; the pipeline is wrapped to draw the same augmentations.
    dataset=dict(
        pipeline=[dict(type='lt_mm.InvertiblePipeline', transforms=_base_.train_pipeline)]
    ),
)

model = dict(
    head=dict(
        _delete_=True,
        type='lt_mm.SupConHead',
        num_classes=10,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
    )
)
