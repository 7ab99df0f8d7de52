# Mask R-CNN with DenseNet121 on PennFudanPed, from random initialisation: the plain run.
# A dense block leaves its maps without normalisation; the maps after the norm and ReLU that
# follow it are taken.
_base_ = 'mask_rcnn_resnet50.py'

model = dict(
    backbone=dict(
        name='densenet121', nodes=[f'features.transition{i}.relu' for i in (1, 2, 3)] + ['relu']
    ),
    neck=dict(in_channels=[256, 512, 1024, 1024]),
)
