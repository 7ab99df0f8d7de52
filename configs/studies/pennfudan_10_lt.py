# A tenth of PennFudanPed with LossTransform-v1: as many images seen as the plain run.
_base_ = 'pennfudan_10.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, mode='v1'),
    dataset=dict(
        pipeline=[
            dict(
                type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline
            )
        ]
    ),
)

model = dict(
    bbox_head=dict(
        _delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.bbox_head, rho=1.0
    )
)
