# Mask R-CNN on the last feature map of a torchvision backbone, stride 32, and the level
# that FPN pools from it; anchors ((32, 64, 128, 256, 512), ) * 2.
_base_ = 'mask_rcnn_torchvision.py'

model = dict(
    neck=dict(num_outs=2),
    rpn_head=dict(
        anchor_generator=dict(strides=[32, 64], base_sizes=[32, 32], scales=[1, 2, 4, 8, 16])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[32]), mask_roi_extractor=dict(featmap_strides=[32])
    ),
)
