# Mask R-CNN with WideResNet50 on PennFudanPed, from random initialisation: the plain run.
_base_ = 'mask_rcnn_resnet50.py'

model = dict(backbone=dict(name='wide_resnet50_2'))
