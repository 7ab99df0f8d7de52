# Mask R-CNN R50-FPN from COCO to PASCAL VOC 2012: the plain run.
_base_ = [
    '../_base_/models/mask_rcnn_r50_frozen.py',
    '../_base_/datasets/voc2012_instance.py',
    '../_base_/schedules/sgd_18e.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=20), mask_head=dict(num_classes=20)))
# The paper gives no schedule of this run; that of PennFudanPed.
optim_wrapper = dict(optimizer=dict(lr=0.005))

# The checkpoint of the stock mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py, from MMDetection's
# model zoo. Its predictors of 80 classes do not fit and are left out, which the log says.
load_from = 'checkpoints/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth'
