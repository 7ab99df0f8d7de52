# ResNet-20 on CIFAR-10 with CutMix in half of the batches, as in its paper.
_base_ = 'resnet20_cifar10.py'

model = dict(train_cfg=dict(augments=[dict(type='CutMix', alpha=1.0)], probs=[0.5]))
