# ResNet-20 on CIFAR-10 with LossTransform and one of Cutout, CutMix and mixup for each
# batch, all equally likely; the mixing is alike for all replicas of an image.
_base_ = 'resnet20_cifar10_lt.py'

data_preprocessor = dict(type='lt_mm.GroupedClsDataPreprocessor')
model = dict(
    train_cfg=dict(
        augments=[
            dict(type='lt_mm.Cutout', length=16),
            dict(type='lt_mm.GroupedCutMix', alpha=1.0),
            dict(type='lt_mm.GroupedMixup', alpha=1.0),
        ]
    )
)
