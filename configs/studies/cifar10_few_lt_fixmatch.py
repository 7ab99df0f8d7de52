# The same with the augmentation of FixMatch, RandAugment and an erased patch, and its threshold.
_base_ = 'cifar10_few_lt_weak.py'

*affine, packing = _base_.train_pipeline
strong = [*affine, _base_.rand_augment, _base_.erasing, packing]
pipeline = [dict(type='lt_mm.InvertiblePipeline', transforms=strong, weak=_base_.train_pipeline)]

train_dataloader = dict(dataset=dict(unlabelled=dict(pipeline=pipeline)))

# An unlabelled image of 16 in a batch of 64 weighs as in FixMatch: 1/16, beside 1/32 for a label.
model = dict(head=dict(weak_target=dict(threshold=0.95), rho=4.0))
