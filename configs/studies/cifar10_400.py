# 400 images a class. The plain run to compare with.
_base_ = 'cifar10_few.py'

max_epochs = 40
train_dataloader = dict(dataset=dict(indices=[i for i in range(50000) if i % 25 < 2]))
param_scheduler = dict(total_steps=max_epochs)
train_cfg = dict(max_epochs=max_epochs, val_interval=8)
default_hooks = dict(checkpoint=dict(interval=8))
