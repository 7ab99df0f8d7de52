# What FixMatch adds to an image of CIFAR-10, as parts of a pipeline: RandAugment, an erased patch.
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
