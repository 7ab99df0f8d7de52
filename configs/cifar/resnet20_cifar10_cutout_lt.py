# ResNet-20 on CIFAR-10 with LossTransform and Cutout, drawn for each replica on its own.
_base_ = 'resnet20_cifar10_lt.py'

data_preprocessor = dict(type='lt_mm.GroupedClsDataPreprocessor')
model = dict(train_cfg=dict(augments=[dict(type='lt_mm.Cutout', length=16)]))
