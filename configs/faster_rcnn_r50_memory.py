# Faster R-CNN R50-FPN on COCO, compared with its predictions of earlier epochs: two overrides.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

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
    roi_head=dict(
        _delete_=True,
        type='lt_mm.LossTransformHead',
        head=_base_.model.roi_head,
        memory=dict(momentum=0.7),
        rho=dict(type='linear', start=0.0, end=1.0, begin=0.0, finish=0.3),
    )
)
