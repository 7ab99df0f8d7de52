# Mask R-CNN with GoogLeNet on PennFudanPed with LossTransform-v1.
_base_ = 'mask_rcnn_resnet50_lt.py'

model = dict(
    backbone=dict(name='googlenet', nodes=['conv3', 'inception3b', 'inception4e', 'inception5b']),
    neck=dict(in_channels=[192, 480, 832, 1024]),
)
