# The recipe for few images: LossTransform-v1, m = 2, and a long schedule.
_base_ = 'cifar10_few.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, mode='v1'),
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
