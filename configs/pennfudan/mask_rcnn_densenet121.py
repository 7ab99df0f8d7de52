# Mask R-CNN with DenseNet121 on PennFudanPed, from random initialisation: the plain run.
# A dense block leaves its maps without normalisation; the maps behind the norm and
# ReLU that follow it are taken.
_base_ = [
    '../_base_/models/mask_rcnn_torchvision.py',
    '../_base_/datasets/pennfudan_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        name='densenet121',
        nodes=[
            'features.transition1.relu',
            'features.transition2.relu',
            'features.transition3.relu',
            'relu',
        ],
    ),
    neck=dict(in_channels=[256, 512, 1024, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
