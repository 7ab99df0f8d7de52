# ResNet-20 on CIFAR-10 with Cutout, a square of 16 pixels for each image, as in its paper.
_base_ = 'resnet20_cifar10.py'

model = dict(train_cfg=dict(augments=[dict(type='lt_mm.Cutout', length=16)]))
