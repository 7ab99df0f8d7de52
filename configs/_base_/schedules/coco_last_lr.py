# 20 epochs at the last learning rate of torchvision's COCO recipe: 0.02 for 8 x 2
# images, divided by 10 at epochs 16 and 22 of 26.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0002, momentum=0.9, weight_decay=0.0001)
)
param_scheduler = []
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
