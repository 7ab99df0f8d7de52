# ResNet-20 on CIFAR-10 with one of Cutout, CutMix and mixup for each batch, all equally
# likely.
_base_ = 'resnet20_cifar10.py'

model = dict(
    train_cfg=dict(
        augments=[
            dict(type='lt_mm.Cutout', length=16),
            dict(type='CutMix', alpha=1.0),
            dict(type='Mixup', alpha=1.0),
        ]
    )
)
