# A tenth of PennFudanPed for YOLOX-Nano, trained as in the BCCD study. The plain run.
_base_ = 'bccd.py'

data_root = 'data/pennfudan/'
max_epochs = 100
size = (256, 256)

load, annotations, _, _, colour, _, pad, pack = _base_.train_pipeline
pad = dict(pad, size=size)
train_pipeline = [
    load,
    annotations,
    dict(type='RandomResize', scale=size, ratio_range=(0.8, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=size, allow_negative_crop=True),
    colour,
    dict(type='RandomFlip', prob=0.5),  # people stand upright
    pad,
    pack,
]
resize = dict(type='Resize', scale=size, keep_ratio=True)
test_pipeline = [load, resize, pad, annotations, _base_.test_pipeline[-1]]

dataset = dict(data_root=data_root, metainfo=dict(classes=('person',)))
trained = dict(ann_file='annotations/train.json', indices=list(range(0, 120, 10)))
train_dataloader = dict(dataset=dict(dataset, **trained, pipeline=train_pipeline))
# Nothing is chosen on the validation images, so they are the test images.
tested = dict(ann_file='annotations/val.json', pipeline=test_pipeline)
val_dataloader = dict(dataset=dict(dataset, **tested))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator

model = dict(bbox_head=dict(num_classes=1))
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=max_epochs)]
train_cfg = dict(max_epochs=max_epochs, val_interval=25)
default_hooks = dict(checkpoint=dict(interval=25))
