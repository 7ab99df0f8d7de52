# EfficientNet-B0 with LossTransform, every image four times an epoch.
_base_ = 'efficientnet_b0_m1.py'

train_dataloader = dict(
    # num_repeats must divide batch_size: 2 and 4 give the gain over m.
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=4),
    dataset=dict(
        pipeline=[
            dict(
                type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline
            )
        ]
    ),
)

model = dict(
    head=dict(_delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.head, rho=1.0)
)
