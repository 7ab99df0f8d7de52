# A quarter of BCCD, as written by tools/dataset_converters/bccd.py, for YOLOX-Nano. Crop, scale,
# flip and colour keep boxes upright and are recorded, so that the box term has something to
# compare; Mosaic and MixUp are left out, and so are rotation and shear.
_base_ = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
pad_val = dict(img=(114.0, 114.0, 114.0))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(256, 192), ratio_range=(0.8, 1.4), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(192, 256), allow_negative_crop=True),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='Pad', size=(256, 192), pad_val=pad_val),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 192), keep_ratio=True),
    dict(type='Pad', size=(256, 192), pad_val=pad_val),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
dataset = dict(
    _delete_=True,
    type='CocoDataset',
    data_root=data_root,
    metainfo=metainfo,
    data_prefix=dict(img='images/'),
)
loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loader,
    dataset=dict(dataset, ann_file='annotations/train_quarter.json', pipeline=train_pipeline),
)
val_dataloader = dict(
    **loader,
    dataset=dict(dataset, ann_file='annotations/val.json', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = dict(
    **loader,
    dataset=dict(dataset, ann_file='annotations/test.json', test_mode=True, pipeline=test_pipeline),
)
val_evaluator = dict(ann_file=data_root + 'annotations/val.json')
test_evaluator = dict(ann_file=data_root + 'annotations/test.json')
