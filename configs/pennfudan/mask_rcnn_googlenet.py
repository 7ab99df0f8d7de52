# Mask R-CNN with GoogLeNet on PennFudanPed, from random initialisation: the plain run.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(name='googlenet', nodes=['conv3', 'inception3b', 'inception4e', 'inception5b']),
    neck=dict(in_channels=[192, 480, 832, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
