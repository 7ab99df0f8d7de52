# RetinaNet fine-tuned with pairs found by IoU, without annotations.
_base_ = 'retinanet_r50_lt_v1.py'

model = dict(bbox_head=dict(pairing='iou', iou_threshold=0.5, score_threshold=0.3))
