# ResNet-20 on CIFAR-10 with LossTransform and CutMix in half of the batches,
# alike for all replicas of an image.
_base_ = 'resnet20_cifar10_lt.py'

data_preprocessor = dict(type='lt_mm.GroupedClsDataPreprocessor')
model = dict(train_cfg=dict(augments=[dict(type='lt_mm.GroupedCutMix', alpha=1.0)], probs=[0.5]))
