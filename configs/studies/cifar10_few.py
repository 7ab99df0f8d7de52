# Few images, many epochs: 50 images a class, 320 epochs. The plain run to compare with.
_base_ = 'cifar10.py'

max_epochs = 320
train_dataloader = dict(dataset=dict(indices=list(range(0, 50000, 100))))
param_scheduler = dict(total_steps=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=64)
default_hooks = dict(checkpoint=dict(interval=64))
