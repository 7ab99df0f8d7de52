# The same, with the prediction for a copy that is only flipped as the target of the other one.
_base_ = 'pennfudan_10_lt_unlabelled.py'

strong = _base_.train_pipeline
load, annotations, _, _, _, flip, pad, pack = strong
weak = [load, annotations, dict(type='Resize', scale=(256, 256), keep_ratio=True), flip, pad, pack]
pipeline = [dict(type='lt_mm.InvertiblePipeline', transforms=strong, weak=weak)]

train_dataloader = dict(dataset=dict(unlabelled=dict(pipeline=pipeline)))

model = dict(bbox_head=dict(weak_target=dict(temperature=0.4, threshold=0.7)))
custom_hooks = [*_base_.custom_hooks, dict(type='lt_mm.WeakTargetHook')]
