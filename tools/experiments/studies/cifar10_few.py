"""The gradient through the mean: ResNet-20 on 500 images of CIFAR-10, 320 epochs.

The settings are those of the `few-*-4x` runs of `cifar10.py`, with five seeds.
docs/studies/cifar10_few/plan.md says how the runs are compared.
"""

plain = 'configs/studies/cifar10_few.py'
lt = 'configs/studies/cifar10_few_lt.py'

metric = 'accuracy/top1'
metric_name = 'Top-1, %'
seeds = [0, 1, 2, 3, 4]
paired = True
# Measured of each trained model: 8 augmented copies of test images.
consistency = dict(num_replicas=8, max_images=500)
measured = dict(mean_kl='KL to the mean', agreement='Agreement')

detach = 'model.head.detach_mean'

runs = {'lt': (lt, {detach: False}), 'detached': (lt, {detach: True})}
sections = {'Equal images seen': [('lt', None), ('detached', 'lt')]}
figures = dict(curves=dict(kind='curves', runs=list(runs)))
