# torchvision's fasterrcnn_mobilenet_v3_large_fpn out of stock parts, with torchvision's
# backbone; see faster_rcnn_r50_tv.py.
_base_ = 'faster_rcnn_r50_tv.py'

nms = dict(score_threshold=0.05)
model = dict(
    backbone=dict(
        _delete_=True,
        type='lt_mm.Frozen',
        module=dict(
            type='lt_mm.TorchvisionBackbone',
            name='mobilenet_v3_large',
            nodes=['features.13', 'features.16'],
            norm_cfg=dict(type='BN', eps=1e-5, requires_grad=False),
            norm_eval=True,
        ),
        parts=[f'features.{i}' for i in range(7)],
    ),
    neck=dict(in_channels=[160, 960], num_outs=3),
    rpn_head=dict(anchor_generator=dict(strides=[32, 32, 64], sizes=[[32, 64, 128, 256, 512]] * 3)),
    # Both levels have stride 32; torchvision takes all RoIs from the first.
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[32])),
    train_cfg=dict(rpn_proposal=dict(nms=nms)),
    test_cfg=dict(rpn=dict(nms=nms)),
)
