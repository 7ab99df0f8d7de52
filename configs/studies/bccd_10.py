# A tenth of BCCD. The plain run to compare with.
_base_ = 'bccd.py'

max_epochs = 100
train_dataloader = dict(
    dataset=dict(ann_file='annotations/train.json', indices=list(range(0, 205, 10)))
)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs)]
train_cfg = dict(max_epochs=max_epochs, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=20))
