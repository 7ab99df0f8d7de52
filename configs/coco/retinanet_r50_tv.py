# RetinaNet R50-FPN of torchvision, fine-tuned on COCO: the plain run.
_base_ = [
    '../_base_/models/retinanet_r50_tv.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_last_lr.py',
    'mmdet::_base_/default_runtime.py',
]

# python tools/model_converters/torchvision_to_mm.py retinanet_resnet50_fpn \
#     retinanet_resnet50_fpn_coco-eeacb38b.pth checkpoints/retinanet_resnet50_fpn_tv.pth
load_from = 'checkpoints/retinanet_resnet50_fpn_tv.pth'
# The recipe begins at 0.01 instead of 0.02.
optim_wrapper = dict(optimizer=dict(lr=0.0001))
