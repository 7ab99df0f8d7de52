# CIFAR-100 with a random affine map and a horizontal flip, in batches of 128.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'

train_pipeline = [
    dict(type='NumpyToPIL'),
    # The paper gives no ranges. The shift is the 4 pixels of the usual pad-and-crop.
    dict(
        type='torchvision/RandomAffine',
        degrees=15,
        translate=(0.125, 0.125),
        scale=(0.9, 1.1),
        shear=10,
        interpolation='bilinear',
        fill=(129, 124, 112),  # the mean colour
    ),
    dict(type='PILToNumpy'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)
