# The plain run of the CIFAR-10 study: ResNet-20 on 200 images a class, 20 epochs of
# 2,000 images, tested on 200 images a class. The images are files,
# data/cifar10_folder/{train,test}/CLASS/*.jpg, loaded in the training process.
_base_ = '../cifar/resnet20_cifar10.py'

data_root = 'data/cifar10_folder/'
data_preprocessor = dict(to_rgb=True)  # the images are loaded as BGR
train_pipeline = [dict(type='LoadImageFromFile'), *_base_.train_pipeline]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

inline = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **inline,
    batch_size=64,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root + 'train',
        indices=list(range(0, 50000, 25)),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    **inline,
    batch_size=250,
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=data_root + 'test',
        indices=list(range(0, 10000, 5)),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

max_epochs = 20
optim_wrapper = dict(optimizer=dict(nesterov=True, weight_decay=5e-4))
param_scheduler = dict(
    _delete_=True,
    type='OneCycleLR',
    eta_max=0.1,
    by_epoch=True,
    total_steps=max_epochs,
    convert_to_iter_based=True,
)
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
default_hooks = dict(logger=dict(interval=8), checkpoint=dict(interval=4, max_keep_ckpts=1))
randomness = dict(seed=0)
