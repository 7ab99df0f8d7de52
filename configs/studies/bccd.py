# The plain run of the BCCD study: YOLOX-Nano from COCO's weights, a quarter of the images.
_base_ = '../_base_/datasets/bccd.py'

max_epochs = 40
model = dict(data_preprocessor=dict(batch_augments=None), bbox_head=dict(num_classes=3))
# The layers of the 80 classes do not fit, and keep their new weights.
load_from = 'data/weights/yolox_nano_coco.pth'

optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        T_max=max_epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
default_hooks = dict(logger=dict(interval=13), checkpoint=dict(interval=8, max_keep_ckpts=1))
custom_hooks = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.005,
        gamma=100,
        update_buffers=True,
        priority=49,
    )
]
randomness = dict(seed=0)
