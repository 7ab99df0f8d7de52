# DINO R50, 4 scales.
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'

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
