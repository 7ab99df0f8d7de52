# Faster R-CNN MobileNetV3-Large FPN of torchvision, fine-tuned on COCO: the plain run.
_base_ = [
    '../_base_/models/faster_rcnn_mobilenetv3l_tv.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_last_lr.py',
    'mmdet::_base_/default_runtime.py',
]

# python tools/model_converters/torchvision_to_mm.py fasterrcnn_mobilenet_v3_large_fpn \
#     fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth \
#     checkpoints/fasterrcnn_mobilenet_v3_large_fpn_tv.pth
load_from = 'checkpoints/fasterrcnn_mobilenet_v3_large_fpn_tv.pth'
