# Mask R-CNN with EfficientNetB4 on PennFudanPed with LossTransform-v1.
_base_ = 'mask_rcnn_convnext_tiny_lt.py'

model = dict(
    backbone=dict(name='efficientnet_b4', nodes=['features.8']), neck=dict(in_channels=[1792])
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
