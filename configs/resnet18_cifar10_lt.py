# ResNet-18 on CIFAR-10 with LossTransform: the stock config and three overrides.
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

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
