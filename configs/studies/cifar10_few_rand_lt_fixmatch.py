# cifar10_few_lt_fixmatch.py with its strong augmentation on the labelled images, too.
_base_ = 'cifar10_few_lt_fixmatch.py'

train_dataloader = dict(
    dataset=dict(
        labelled=dict(pipeline=[dict(type='lt_mm.InvertiblePipeline', transforms=_base_.strong)])
    )
)
# Steadiness is measured on the copies of cifar10.py.
replica_pipeline = _base_.train_pipeline
