# Faster R-CNN fine-tuned with pairs found by IoU, without annotations: confident
# predictions of one class whose restored boxes overlap most.
_base_ = 'faster_rcnn_r50_lt_v1.py'

model = dict(roi_head=dict(pairing='iou', iou_threshold=0.5, score_threshold=0.5))
