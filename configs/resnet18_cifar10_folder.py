# The stock ResNet-18 on CIFAR-10 images in folders, train/CLASS/*.jpg and test/CLASS/*.jpg.
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

data_root = 'data/cifar10_folder/'
# The images are loaded as BGR.
data_preprocessor = dict(to_rgb=True)
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), *_base_.test_pipeline]

train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root=data_root + 'train', pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=64,
    dataset=dict(
        _delete_=True, type='CustomDataset', data_root=data_root + 'test', pipeline=test_pipeline
    ),
)
test_dataloader = val_dataloader

max_epochs = 10
optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=5e-4))
param_scheduler = dict(
    _delete_=True,
    type='OneCycleLR',
    eta_max=0.05,
    by_epoch=True,
    total_steps=max_epochs,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=max_epochs, val_interval=5)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=5, max_keep_ckpts=1))
randomness = dict(seed=0)
