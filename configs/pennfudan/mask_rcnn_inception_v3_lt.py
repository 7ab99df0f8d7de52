# Mask R-CNN with InceptionV3 on PennFudanPed with LossTransform-v1.
_base_ = 'mask_rcnn_convnext_tiny_lt.py'

model = dict(backbone=dict(name='inception_v3', nodes=['Mixed_7c']), neck=dict(in_channels=[2048]))
