"""The detection study: Faster R-CNN on PennFudanPed, from random initialisation.

Names are `<loss>[-<what differs>]`, as in the study of CIFAR-10, at equal images seen.
`tuned` runs go on for a quarter of the schedule from the last checkpoint of the run of
the same seed that they name, at the tenth part of its learning rate.
"""

plain = 'configs/studies/pennfudan.py'
lt = 'configs/studies/pennfudan_lt.py'

metric = 'coco/bbox_mAP'
metric_name = 'box AP'
scale = 100
seeds = [0, 1, 2]
# Measured of each trained model: 4 augmented copies of the validation images.
consistency = dict(num_replicas=4, score_threshold=0.3)
measured = dict(matched_share='Matched', mean_iou='IoU of matched')

rho = 'model.roi_head.rho'
rho_bbox = 'model.roi_head.rho_bbox'
pairing = 'model.roi_head.pairing'
warm_up = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0)
tuning = {
    'optim_wrapper.optimizer.lr': 5e-5,
    'train_cfg.max_epochs': 4,
    'train_cfg.val_interval': 2,
    'param_scheduler': [dict(warm_up, end=20)],
}


def few(settings):
    """A fifth of the training images, with as many images seen: 80 epochs."""
    return {
        'train_dataloader.dataset.indices': list(range(0, 120, 5)),
        'train_cfg.max_epochs': 80,
        'train_cfg.val_interval': 20,
        'default_hooks.checkpoint.interval': 10,
        'param_scheduler': [
            dict(warm_up, end=40),
            dict(
                type='CosineAnnealingLR',
                by_epoch=True,
                T_max=80,
                eta_min=1e-5,
                convert_to_iter_based=True,
            ),
        ],
        **settings,
    }


runs = {
    'plain': (plain, {}),
    'repeated': (lt, {rho: 0.0}),
    'lt': (lt, {}),
    'plain-tuned': (plain, tuning, 'plain'),
    'repeated-tuned': (lt, {rho: 0.0, **tuning}, 'plain'),
    'lt-tuned': (lt, tuning, 'plain'),
    'lt-tuned-iou': (lt, {pairing: 'iou', **tuning}, 'plain'),
    'lt-tuned-iou-no-box': (lt, {pairing: 'iou', rho_bbox: 0.0, **tuning}, 'plain'),
    'few-plain': (plain, few({})),
    'few-repeated': (lt, few({rho: 0.0})),
    'few-lt': (lt, few({})),
    'lt-no-box': (lt, {rho_bbox: 0.0}),
}
sections = {
    'Equal images seen': [
        ('plain', None),
        ('repeated', 'plain'),
        ('lt', 'plain'),
        ('lt', 'repeated'),
        ('lt-no-box', 'lt'),
    ],
    'Few images: 24, 80 epochs, equal images seen': [
        ('few-plain', None),
        ('few-repeated', 'few-plain'),
        ('few-lt', 'few-plain'),
        ('few-lt', 'few-repeated'),
    ],
    'Fine-tuning the plain detector': [
        ('plain', None),
        ('plain-tuned', 'plain'),
        ('repeated-tuned', 'plain-tuned'),
        ('lt-tuned', 'plain-tuned'),
        ('lt-tuned', 'repeated-tuned'),
        ('lt-tuned-iou', 'plain-tuned'),
        ('lt-tuned-iou-no-box', 'lt-tuned-iou'),
    ],
}
figures = dict(curves=dict(kind='curves', runs=['plain', 'repeated', 'lt']))
