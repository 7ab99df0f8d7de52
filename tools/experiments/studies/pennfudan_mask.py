"""The detection study with masks: Mask R-CNN on PennFudanPed; see `pennfudan.py`."""

plain = 'configs/studies/pennfudan_mask.py'
lt = 'configs/studies/pennfudan_mask_lt.py'

metric = 'coco/segm_mAP'
metric_name = 'mask AP'
scale = 100
seeds = [0, 1, 2]
consistency = dict(num_replicas=4, score_threshold=0.3)
measured = dict(matched_share='Matched', mean_iou='IoU of matched')

runs = {'plain': (plain, {}), 'repeated': (lt, {'model.roi_head.rho': 0.0}), 'lt': (lt, {})}
sections = {
    'Equal images seen': [
        ('plain', None),
        ('repeated', 'plain'),
        ('lt', 'plain'),
        ('lt', 'repeated'),
    ]
}
figures = dict(curves=dict(kind='curves', runs=['plain', 'repeated', 'lt']))
