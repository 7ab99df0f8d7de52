# Mask R-CNN with InceptionV3 on PennFudanPed, from random initialisation: the plain run.
# InceptionV3 convolves without padding, so its cells lie some pixels further in than their
# stride says; neither torchvision nor the stock anchors correct for it.
_base_ = 'mask_rcnn_convnext_tiny.py'

model = dict(backbone=dict(name='inception_v3', nodes=['Mixed_7c']), neck=dict(in_channels=[2048]))
