# Faster R-CNN R50-FPN of torchvision, fine-tuned on COCO: the plain run.
_base_ = [
    '../_base_/models/faster_rcnn_r50_tv.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_last_lr.py',
    'mmdet::_base_/default_runtime.py',
]

# python tools/model_converters/torchvision_to_mm.py fasterrcnn_resnet50_fpn \
#     fasterrcnn_resnet50_fpn_coco-258fb6c6.pth checkpoints/fasterrcnn_resnet50_fpn_tv.pth
load_from = 'checkpoints/fasterrcnn_resnet50_fpn_tv.pth'
