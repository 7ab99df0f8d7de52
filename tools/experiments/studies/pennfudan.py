"""The detection study: Faster and Mask R-CNN on PennFudanPed, from random initialisation.

Names are `<loss>[-<what differs>]`, as in the study of CIFAR-10, at equal images seen.
`tuned` runs go on for a quarter of the schedule from the last checkpoint of the run of
the same seed that they name, at the tenth part of its learning rate.
"""
plain = 'configs/studies/pennfudan.py'
lt = 'configs/studies/pennfudan_lt.py'
plain_mask = 'configs/studies/pennfudan_mask.py'
lt_mask = 'configs/studies/pennfudan_mask_lt.py'

metric = 'coco/bbox_mAP'
metric_name = 'box AP'
scale = 100
seeds = [0, 1, 2]
# Measured of each trained model: 4 augmented copies of the validation images.
consistency = dict(num_replicas=4, score_threshold=0.3)

rho = 'model.roi_head.rho'
rho_bbox = 'model.roi_head.rho_bbox'
pairing = 'model.roi_head.pairing'
fraction = 'train_dataloader.sampler.repeat_fraction'
unrepeated = 'model.roi_head.allow_unrepeated'
tuning = {
    'optim_wrapper.optimizer.lr': 5e-5,
    'train_cfg.max_epochs': 4,
    'train_cfg.val_interval': 2,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20)
    ],
}

runs = {
    'plain': (plain, {}),
    'repeated': (lt, {rho: 0.0}),
    'lt': (lt, {}),
    'lt-no-box': (lt, {rho_bbox: 0.0}),
    'lt-nearest': (lt, {pairing: 'gt_nearest'}),
    **{f'lt-rho={value}': (lt, {rho: value}) for value in (3.0, 10.0)},
    'plain-tuned': (plain, tuning, 'plain'),
    'repeated-tuned': (lt, {rho: 0.0, **tuning}, 'plain'),
    'lt-tuned': (lt, tuning, 'plain'),
    'lt-tuned-iou': (lt, {pairing: 'iou', **tuning}, 'plain'),
    'lt-tuned-iou-no-box': (lt, {pairing: 'iou', rho_bbox: 0.0, **tuning}, 'plain'),
    'plain-mask': (plain_mask, {}),
    'repeated-mask': (lt_mask, {rho: 0.0}),
    'lt-mask': (lt_mask, {}),
    'lt-fraction=0.5': (lt, {fraction: 0.5, unrepeated: True}),
}
sections = {
    'Faster R-CNN, equal images seen': [
        ('plain', None), ('repeated', 'plain'), ('lt', 'plain'), ('lt', 'repeated'),
        ('lt-no-box', 'lt'), ('lt-nearest', 'lt'), ('lt-rho=3.0', 'lt'),
        ('lt-rho=10.0', 'lt'),        ('lt-fraction=0.5', 'plain'),
    ],
    'Fine-tuning the plain detector': [
        ('plain', None), ('plain-tuned', 'plain'), ('repeated-tuned', 'plain-tuned'),
        ('lt-tuned', 'plain-tuned'), ('lt-tuned-iou', 'plain-tuned'),
        ('lt-tuned-iou-no-box', 'lt-tuned-iou'),
    ],
    'Mask R-CNN, equal images seen': [
        ('plain-mask', None), ('repeated-mask', 'plain-mask'), ('lt-mask', 'plain-mask'),
        ('lt-mask', 'repeated-mask'),
    ],
}
figures = dict(curves=dict(kind='curves', runs=['plain', 'repeated', 'lt']))
