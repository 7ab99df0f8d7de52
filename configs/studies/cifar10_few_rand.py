# cifar10_few.py with the strong augmentation of cifar10_few_lt_fixmatch.py on the labelled images.
_base_ = 'cifar10_few.py'

rand_augment = dict(
    type='RandAugment',
    policies='timm_increasing',
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(pad_val=128, interpolation='bicubic'),
)
erasing = dict(
    type='RandomErasing', erase_prob=1.0, min_area_ratio=0.1, max_area_ratio=0.25, mode='const'
)
*affine, packing = _base_.train_pipeline
strong = [*affine, rand_augment, erasing, packing]
train_dataloader = dict(dataset=dict(pipeline=strong))
# Steadiness is measured on the copies of cifar10.py.
replica_pipeline = _base_.train_pipeline
