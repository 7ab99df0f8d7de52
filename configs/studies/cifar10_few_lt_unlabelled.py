# 50 labelled images a class; half of each batch are pairs of copies of 5,000 images.
_base_ = 'cifar10_few.py'

pipeline = [
    dict(type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline)
]
labelled = _base_.train_dataloader.dataset
unlabelled = list(range(0, 50000, 10))  # whose labels are not read

train_dataloader = dict(
    sampler=dict(
        _delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, unlabelled_share=0.5
    ),
    dataset=dict(
        _delete_=True,
        type='lt_mm.LabelledAndUnlabelled',
        labelled=dict(labelled, pipeline=pipeline),
        unlabelled=dict(labelled, pipeline=pipeline, indices=unlabelled),
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
