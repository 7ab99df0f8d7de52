# Mask R-CNN with GoogLeNet on PennFudanPed, from random initialisation: the plain run.
_base_ = 'mask_rcnn_resnet50.py'

model = dict(
    backbone=dict(name='googlenet', nodes=['conv3', 'inception3b', 'inception4e', 'inception5b']),
    neck=dict(in_channels=[192, 480, 832, 1024]),
)
