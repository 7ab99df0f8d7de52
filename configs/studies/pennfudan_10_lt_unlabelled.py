# A tenth of PennFudanPed with its labels; the copies of the other images are matched by IoU.
_base_ = 'pennfudan_10.py'

pipeline = [
    dict(type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline)
]
labelled = _base_.train_dataloader.dataset
unlabelled = [i for i in range(120) if i % 10]

train_dataloader = dict(
    batch_size=8,
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
    bbox_head=dict(
        _delete_=True,
        type='lt_mm.LossTransformHead',
        head=_base_.model.bbox_head,
        score_threshold=0.3,
        rho=dict(type='gaussian', start=0.0, end=1.0, begin=0.0, finish=0.4),
    )
)
