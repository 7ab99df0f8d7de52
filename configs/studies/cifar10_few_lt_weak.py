# The same, with the prediction for a weak copy as the target of one with a patch erased.
_base_ = ['cifar10_few_lt_unlabelled.py', '../_base_/datasets/strong_augmentation.py']

strong = [*_base_.train_pipeline[:-1], _base_.erasing, _base_.train_pipeline[-1]]
pipeline = [dict(type='lt_mm.InvertiblePipeline', transforms=strong, weak=_base_.train_pipeline)]

train_dataloader = dict(dataset=dict(unlabelled=dict(pipeline=pipeline)))

model = dict(head=dict(weak_target=dict(temperature=0.4, threshold=0.8), rho=1.0))
custom_hooks = [dict(type='lt_mm.WeakTargetHook')]
