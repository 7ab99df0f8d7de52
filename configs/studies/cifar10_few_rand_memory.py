# cifar10_few_rand.py, compared with predictions of earlier epochs: every image once a batch.
_base_ = 'cifar10_few_rand.py'

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
    head=dict(
        _delete_=True,
        type='lt_mm.LossTransformHead',
        head=_base_.model.head,
        memory=dict(momentum=0.5),
        rho=dict(type='linear', start=0.0, end=1.0, begin=0.0, finish=0.3),
    )
)
