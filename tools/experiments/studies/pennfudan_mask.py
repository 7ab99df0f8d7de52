"""The detection study with masks: Mask R-CNN on PennFudanPed; see `pennfudan.py`."""
plain = 'configs/studies/pennfudan_mask.py'
lt = 'configs/studies/pennfudan_mask_lt.py'

metric = 'coco/segm_mAP'
metric_name = 'mask AP'
scale = 100
seeds = [0, 1, 2]
consistency = dict(num_replicas=4, score_threshold=0.3)
measured = dict(matched_share='Matched', mean_iou='IoU of matched')

runs = {
    'plain': (plain, {}),
    'repeated': (lt, {'model.roi_head.rho': 0.0}),
    'lt': (lt, {}),
    'lt-late': (lt, {
        'train_dataloader.sampler.start_epoch': 8,
        'model.roi_head.rho': dict(
            _delete_=True, type='linear', start=0, end=1, begin=0.5, finish=0.55)
    }),
}
sections = {
    'Equal images seen': [
        ('plain', None), ('repeated', 'plain'), ('lt', 'plain'), ('lt', 'repeated'),
        ('lt-late', 'plain'),
    ],
}
figures = dict(curves=dict(kind='curves', runs=['plain', 'repeated', 'lt']))
