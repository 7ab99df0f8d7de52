# Mask R-CNN with ConvNeXt-tiny on PennFudanPed, from random initialisation: the plain run.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision_last_map.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(name='convnext_tiny', nodes=['features.7']), neck=dict(in_channels=[768])
)
optim_wrapper = dict(optimizer=dict(lr=0.0025))
