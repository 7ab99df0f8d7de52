"""Whole stock models with a wrapped head, narrow and without random draws."""

from tests.models.heads.head_data import roi_head_config

_NARROW = dict(
    type='ResNet',
    depth=18,
    num_stages=4,
    out_indices=(2, 3),
    base_channels=8,
    stem_channels=8,
    norm_eval=True,
)
_FPN = dict(type='FPN', in_channels=[32, 64], out_channels=8, num_outs=2)
_SQUARE_ANCHORS = dict(
    type='AnchorGenerator', ratios=[1.0], octave_base_scale=2, scales_per_octave=1, strides=[16, 32]
)
_ALL = dict(
    type='RandomSampler', num=10**4, pos_fraction=1.0, neg_pos_ub=-1, add_gt_as_proposals=False
)
_PRIORS = dict(allowed_border=-1, pos_weight=-1, debug=False)


def _at_iou(threshold):
    """Every prior is positive or negative, none ignored."""
    return dict(
        type='MaxIoUAssigner',
        pos_iou_thr=threshold,
        neg_iou_thr=threshold,
        min_pos_iou=threshold,
        ignore_iof_thr=-1,
    )


def model_config(kind, across_ranks):
    """A classifier, a single-stage or a two-stage detector that draws nothing.

    The number of samples of each loss is the same for all images, or shared by the
    ranks (ATSS), so that the stock losses of two ranks average to that of one.
    """
    wrap = dict(type='lt_mm.LossTransformHead', rho=1.0, across_ranks=across_ranks)
    if kind == 'classifier':
        return dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(_NARROW, type='mmpretrain.ResNet', out_indices=(3,)),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(
                wrap, head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=64)
            ),
        )
    if kind == 'ATSS':
        return dict(
            type='mmdet.ATSS',
            backbone=_NARROW,
            neck=_FPN,
            bbox_head=dict(
                wrap,
                head=dict(
                    type='ATSSHead',
                    num_classes=3,
                    in_channels=8,
                    feat_channels=8,
                    stacked_convs=1,
                    norm_cfg=None,
                    anchor_generator=_SQUARE_ANCHORS,
                    loss_bbox=dict(type='GIoULoss'),
                ),
            ),
            train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=4), **_PRIORS),
        )
    roi_head = roi_head_config()
    roi_head['bbox_roi_extractor']['featmap_strides'] = [16]
    return dict(
        type='mmdet.FasterRCNN',
        backbone=_NARROW,
        neck=_FPN,
        rpn_head=dict(
            type='RPNHead',
            in_channels=8,
            feat_channels=8,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[2], ratios=[1.0], strides=[16, 32]
            ),
        ),
        roi_head=dict(wrap, head=roi_head),
        train_cfg=dict(
            rpn=dict(assigner=_at_iou(0.4), sampler=_ALL, **_PRIORS),
            rpn_proposal=dict(
                nms_pre=100,
                max_per_img=16,
                min_bbox_size=-1,
                nms=dict(type='nms', iou_threshold=1.0),
            ),
            rcnn=dict(
                assigner=_at_iou(0.4),
                sampler=dict(_ALL, add_gt_as_proposals=True),
                pos_weight=-1,
                debug=False,
            ),
        ),
        test_cfg=dict(rpn=None, rcnn=None),
    )
