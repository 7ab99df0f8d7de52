# A tenth of PennFudanPed, compared with predictions of earlier epochs: every image once a batch.
_base_ = 'pennfudan_10.py'

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline
            )
        ]
    )
)

model = dict(
    bbox_head=dict(
        _delete_=True,
        type='lt_mm.LossTransformHead',
        head=_base_.model.bbox_head,
        memory=dict(momentum=0.7),
        rho=dict(type='linear', start=0.0, end=1.0, begin=0.0, finish=0.3),
    )
)
