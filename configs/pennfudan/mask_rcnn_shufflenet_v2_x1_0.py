# Mask R-CNN with ShuffleNetV2 on PennFudanPed, from random initialisation: the plain run.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision_last_map.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(name='shufflenet_v2_x1_0', nodes=['conv5']), neck=dict(in_channels=[1024])
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
