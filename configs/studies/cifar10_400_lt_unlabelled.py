# 400 labelled images a class, and all 50,000 images without labels.
_base_ = 'cifar10_400.py'

pipeline = [
    dict(type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline)
]
labelled = _base_.train_dataloader.dataset

train_dataloader = dict(
    sampler=dict(
        _delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, unlabelled_share=0.5
    ),
    dataset=dict(
        _delete_=True,
        type='lt_mm.LabelledAndUnlabelled',
        labelled=dict(labelled, pipeline=pipeline),
        unlabelled=dict(labelled, pipeline=pipeline, indices=None),
    ),
)

model = dict(
    head=dict(
        _delete_=True,
        type='lt_mm.LossTransformHead',
        head=_base_.model.head,
        rho=dict(type='gaussian', start=0.0, end=10.0, begin=0.0, finish=0.4),
    )
)
