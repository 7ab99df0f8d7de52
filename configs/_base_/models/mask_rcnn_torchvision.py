# Mask R-CNN from random initialisation on four feature maps of a torchvision backbone.
# A config names backbone.name, backbone.nodes and neck.in_channels. The stock anchors,
# a size a level, are ((32,), (64,), (128,), (256,), (512,)).
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(_delete_=True, type='lt_mm.TorchvisionBackbone'),
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)),
)
