# Mask R-CNN with WideResNet50 on PennFudanPed with LossTransform-v1.
_base_ = 'mask_rcnn_resnet50_lt.py'

model = dict(backbone=dict(name='wide_resnet50_2'))
