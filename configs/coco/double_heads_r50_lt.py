# Double-Head Faster R-CNN R50-FPN.
_base_ = 'mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py'

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
    roi_head=dict(
        _delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.roi_head, rho=1.0
    )
)
