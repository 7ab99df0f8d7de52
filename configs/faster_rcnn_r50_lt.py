# Faster R-CNN R50-FPN on COCO with LossTransform: the stock config and three overrides.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

train_dataloader = dict(
    # num_repeats must divide batch_size. The stock batch of 2 is one source, twice; batch_size=4
    # holds two. An epoch has twice the steps; mode='v1' in the sampler keeps its length.
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
