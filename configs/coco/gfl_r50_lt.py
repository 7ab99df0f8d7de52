# GFL R50-FPN: the box term is the KL of the predicted side distributions.
_base_ = 'mmdet::gfl/gfl_r50_fpn_1x_coco.py'

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
