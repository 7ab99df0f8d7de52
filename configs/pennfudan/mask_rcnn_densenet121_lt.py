# Mask R-CNN with DenseNet121 on PennFudanPed with LossTransform-v1; for the nodes
# see mask_rcnn_densenet121.py.
_base_ = 'mask_rcnn_resnet50_lt.py'

model = dict(
    backbone=dict(
        name='densenet121', nodes=[f'features.transition{i}.relu' for i in (1, 2, 3)] + ['relu']
    ),
    neck=dict(in_channels=[256, 512, 1024, 1024]),
)
