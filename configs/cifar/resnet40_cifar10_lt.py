# "ResNet-40" is the net of 44 layers: see resnet40_cifar10.py.
_base_ = 'resnet44_cifar10_lt.py'
