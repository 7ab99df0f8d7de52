# Mask R-CNN with MNASNet1.0 on PennFudanPed with LossTransform-v1; for the momentum
# see mask_rcnn_mnasnet1_0.py.
_base_ = 'mask_rcnn_convnext_tiny_lt.py'

model = dict(
    backbone=dict(name='mnasnet1_0', nodes=['layers'], norm_momentum=0.1),
    neck=dict(in_channels=[1280]),
)
