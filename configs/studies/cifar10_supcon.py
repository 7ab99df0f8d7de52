# The CIFAR-10 study with SupCon on the batches of cifar10_lt.py.
_base_ = 'cifar10.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, mode='v1'),
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
