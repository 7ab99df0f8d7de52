# torchvision's retinanet_resnet50_fpn out of stock parts; see faster_rcnn_r50_tv.py.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(norm_cfg=dict(requires_grad=False, eps=0.0), init_cfg=None),
    neck=dict(add_extra_convs='on_output', relu_before_extra_convs=True),
    bbox_head=dict(
        anchor_generator=dict(
            _delete_=True,
            type='lt_mm.TorchvisionAnchorGenerator',
            strides=[8, 16, 32, 64, 128],
            sizes=[[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]],
        )
    ),
    test_cfg=dict(min_bbox_size=-1, max_per_img=300),
)
