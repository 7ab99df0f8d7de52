# Faster R-CNN R18-FPN with LossTransform on the embedded shapes (tools/quickstart.sh).
_base_ = 'faster_rcnn_r18_demo.py'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='lt_mm.GroupedRepeatAugSampler', num_repeats=2),
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
