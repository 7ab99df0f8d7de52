# With LossTransform-v1: as many images an epoch as the plain config.
_base_ = 'mask_rcnn_convnext_tiny.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2, mode='v1'),
    dataset=dict(
        dataset=dict(
            pipeline=[dict(type='lt_mm.InvertiblePipeline', transforms=_base_.load_pipeline)]
        ),
        pipeline=[
            dict(
                type='lt_mm.InvertiblePipeline', transforms=_base_.train_dataloader.dataset.pipeline
            )
        ],
    ),
)

model = dict(
    roi_head=dict(
        _delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.roi_head, rho=1.0
    )
)
