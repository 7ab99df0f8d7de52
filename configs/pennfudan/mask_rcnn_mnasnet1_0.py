# Mask R-CNN with MNASNet1.0 on PennFudanPed, from random initialisation: the plain run.
# With torchvision's momentum, 0.0003, the running statistics would stay near their initial
# values for all 540 steps; 0.1 is the momentum of the other backbones.
_base_ = 'mask_rcnn_convnext_tiny.py'

model = dict(
    backbone=dict(name='mnasnet1_0', nodes=['layers'], norm_momentum=0.1),
    neck=dict(in_channels=[1280]),
)
