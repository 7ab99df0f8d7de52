# Mask R-CNN with MNASNet1.0 on PennFudanPed, from random initialisation: the plain run.
# The momentum of torchvision, 0.0003, leaves the running statistics of the 540 steps
# near where they began; 0.1 is that of the other backbones.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision_last_map.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(name='mnasnet1_0', nodes=['layers'], norm_momentum=0.1),
    neck=dict(in_channels=[1280]),
)
optim_wrapper = dict(optimizer=dict(lr=0.0025))
