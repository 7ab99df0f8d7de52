# The images of cifar10_affine.py as files, data/cifar10_folder/{train,test}/CLASS/*.jpg: 200
# training images and 200 test images a class, loaded in the training process.
_base_ = 'cifar10_affine.py'

data_root = 'data/cifar10_folder/'
data_preprocessor = dict(to_rgb=True)  # the images are loaded as BGR
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root + 'train',
        indices=list(range(0, 50000, 25)),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root + 'test',
        indices=list(range(0, 10000, 5)),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
