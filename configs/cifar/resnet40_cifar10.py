# The "ResNet-40" of the LossTransform paper, 0.66M parameters, is the net of 44 layers:
# the depths of this family are 6n + 2.
_base_ = 'resnet44_cifar10.py'
