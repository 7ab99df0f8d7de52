# The plain detector of the demo, for comparison with faster_rcnn_r18_lt_demo.py.
_base_ = [
    '_base_/models/faster_rcnn_r18_small.py',
    '_base_/datasets/shapes.py',
    '_base_/schedules/adamw_from_scratch.py',
    'mmdet::_base_/default_runtime.py',
]
train_cfg = dict(val_interval=2)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=2))
randomness = dict(seed=0)
