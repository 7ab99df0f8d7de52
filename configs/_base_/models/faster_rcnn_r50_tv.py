# torchvision's fasterrcnn_resnet50_fpn out of stock parts: the outputs are equal with
# weights converted by tools/model_converters/torchvision_to_mm.py.
_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'

loss_bbox = dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)
model = dict(
    # Frozen, and eps 0, with which torchvision loads the COCO weights.
    backbone=dict(norm_cfg=dict(requires_grad=False, eps=0.0), init_cfg=None),
    rpn_head=dict(
        anchor_generator=dict(
            _delete_=True,
            type='lt_mm.TorchvisionAnchorGenerator',
            strides=[4, 8, 16, 32, 64],
            sizes=[[32], [64], [128], [256], [512]],
        ),
        loss_bbox=loss_bbox,
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
        bbox_head=dict(loss_bbox=loss_bbox),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(min_pos_iou=0)),
        rpn_proposal=dict(max_per_img=2000, min_bbox_size=1e-3),
    ),
    test_cfg=dict(rpn=dict(min_bbox_size=1e-3)),
)
