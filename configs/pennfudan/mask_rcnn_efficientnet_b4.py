# Mask R-CNN with EfficientNetB4 on PennFudanPed, from random initialisation: the plain run.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision_last_map.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(name='efficientnet_b4', nodes=['features.8']), neck=dict(in_channels=[1792])
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
