# NASNetMobile, 30 epochs of SGD at a constant learning rate: the plain run.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    'mmpretrain::_base_/default_runtime.py',
]

# The published PyTorch weights, as they are (Cadene's pretrained-models.pytorch).
load_from = 'checkpoints/nasnetamobile-7e03cead.pth'

model = dict(
    type='ImageClassifier',
    backbone=dict(type='lt_mm.NASNetMobile'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1056,
        loss=dict(type='CrossEntropyLoss'),
        topk=(1, 5),
    ),
)

# What the weights expect: RGB from -1 to 1.
data_preprocessor = dict(mean=[127.5] * 3, std=[127.5] * 3)
train_dataloader = dict(batch_size=128)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.001, momentum=0.9, weight_decay=4e-5)
)
param_scheduler = []
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=128)
