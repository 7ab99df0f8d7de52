# ResNet-20 on CIFAR-10 with LossTransform, every image four times an epoch.
_base_ = 'resnet20_cifar10.py'

train_dataloader = dict(
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
