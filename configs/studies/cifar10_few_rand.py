# cifar10_few.py with the strong augmentation of cifar10_few_lt_fixmatch.py on the labelled images.
_base_ = ['cifar10_few.py', '../_base_/datasets/strong_augmentation.py']

*affine, packing = _base_.train_pipeline
strong = [*affine, _base_.rand_augment, _base_.erasing, packing]
train_dataloader = dict(dataset=dict(pipeline=strong))
# Steadiness is measured on the copies of cifar10.py.
replica_pipeline = _base_.train_pipeline
