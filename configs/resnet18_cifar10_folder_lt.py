# With LossTransform-v1: as many images an epoch as the plain config.
_base_ = 'resnet18_cifar10_folder.py'

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
