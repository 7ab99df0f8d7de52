# Mask R-CNN with WideResNet50 on PennFudanPed, from random initialisation: the plain run.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(name='wide_resnet50_2', nodes=['layer1', 'layer2', 'layer3', 'layer4']),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
