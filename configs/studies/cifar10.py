# The plain run of the CIFAR-10 study: ResNet-20, 20 epochs of 2,000 images.
_base_ = [
    '../_base_/models/resnet20_cifar.py',
    '../_base_/datasets/cifar10_folder_affine.py',
    '../_base_/schedules/cifar_120e.py',
    'mmpretrain::_base_/default_runtime.py',
]

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
