# 18 epochs in batches of 4, the learning rate divided by 10 at 12 and 16; a config sets
# lr. The paper does not tell of the rest: one epoch of PennFudanPed as warm-up, as in
# torchvision's reference scripts, and clipped gradients. From random initialisation the
# stock mask head starts with a loss near 25, and Mask R-CNN with ResNet50 diverges at lr
# 0.004 of the warm-up if they are not clipped.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=18, val_interval=3)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=30),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=18, milestones=[12, 16], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
