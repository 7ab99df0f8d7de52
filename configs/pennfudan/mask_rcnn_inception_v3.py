# Mask R-CNN with InceptionV3 on PennFudanPed, from random initialisation: the plain run.
# InceptionV3 convolves without padding, so that its cells lie some pixels further in
# than their stride says; neither torchvision nor the stock anchors correct for it.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision_last_map.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(backbone=dict(name='inception_v3', nodes=['Mixed_7c']), neck=dict(in_channels=[2048]))
optim_wrapper = dict(optimizer=dict(lr=0.0025))
