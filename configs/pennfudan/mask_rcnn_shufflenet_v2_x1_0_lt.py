# Mask R-CNN with ShuffleNetV2 on PennFudanPed with LossTransform-v1.
_base_ = 'mask_rcnn_convnext_tiny_lt.py'

model = dict(
    backbone=dict(name='shufflenet_v2_x1_0', nodes=['conv5']), neck=dict(in_channels=[1024])
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
