"""Which mode pays for a detector of people: YOLOX-Nano from COCO's weights on PennFudanPed.

All arms take 300 steps of 4 images, with the settings that the study of modes on BCCD ended with.
Nothing is chosen, so that validation images are test images. docs/studies/pennfudan_modes/plan.md
says how they are compared.
"""

from typing import Any

plain = 'configs/studies/pennfudan_10.py'
lt = 'configs/studies/pennfudan_10_lt.py'
memory = 'configs/studies/pennfudan_10_memory.py'
unlabelled = 'configs/studies/pennfudan_10_lt_unlabelled.py'
weak = 'configs/studies/pennfudan_10_lt_weak.py'

metric = 'coco/bbox_mAP'
metric_name = 'Box AP'
scale = 100
seeds = [0, 1, 2, 3, 4]
paired = True
# Measured of each trained model: 4 augmented copies, frames, corruptions.
consistency = dict(num_replicas=4, score_threshold=0.3)
steadiness = dict(num_frames=16, max_images=50, score_threshold=0.3)
kinds = ('gaussian_noise', 'defocus_blur', 'fog', 'contrast', 'jpeg_compression')
corruptions = dict(kinds=kinds, severities=(3,))
measured = dict(
    mean_iou='IoU of matched',
    score_jitter='Difference of scores',
    blinking='Blinking',
    center_jitter='Centre jitter',
    size_jitter='Size jitter',
    score_swing='Score swing',
    objects_per_frame='Objects a frame',
    mPC='mPC',
)


def schedule(epochs: int) -> dict[str, Any]:
    """A run of this many epochs, validated at its end."""
    warm_up = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50)
    cosine = dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        T_max=epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    )
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler': [warm_up, cosine],
        'default_hooks.checkpoint.interval': epochs,
    }


rho, rho_obj = 'model.bbox_head.rho', 'model.bbox_head.rho_obj'
pairing = 'model.bbox_head.pairing'
indices = 'train_dataloader.dataset.indices'
linear = dict(type='linear', start=0.0, begin=0.0, finish=0.3)
gaussian = dict(type='gaussian', start=0.0, begin=0.0, finish=0.4)
own = schedule(100)
# Half of a batch is unlabelled, so an epoch of the labelled images takes twice the steps.
half = {**schedule(50), 'train_dataloader.batch_size': 4}
memory10 = {**own, rho: dict(linear, end=10.0), rho_obj: dict(linear, end=1.0)}


def unlabelled_at(rho_end: float, epochs: int = 50) -> tuple[str, dict[str, Any]]:
    """The arm with unlabelled images at this rho, and a tenth of it for objectness."""
    ends = {rho: dict(gaussian, end=rho_end), rho_obj: dict(gaussian, end=rho_end / 10)}
    return unlabelled, {**half, **schedule(epochs), **ends}


runs: dict[str, tuple[str, dict[str, Any]]] = {
    'plain': (plain, own),
    'repeated': (lt, {**own, rho: 0.0}),
    'lt@1': (lt, own),
    'lt-score@1': (lt, {**own, pairing: 'gt_score'}),
    'memory@10': (memory, memory10),
    'unlabelled@30': unlabelled_at(30.0),
    'weak@10': (weak, {**half, rho: dict(gaussian, end=10.0), rho_obj: dict(gaussian, end=1.0)}),
    'ceiling': (plain, {**schedule(10), indices: list(range(120))}),
}
equal_compute = [*runs]

# Why unlabelled images cost AP; and pairings.
runs['unlabelled@0'] = unlabelled, {**half, rho: 0.0, rho_obj: 0.0}
runs['unlabelled@3'] = unlabelled_at(3.0)
runs['lt-mean@1'] = lt, {**own, pairing: 'gt_mean'}
runs['lt-all@1'] = lt, {**own, pairing: 'gt_all'}
runs['memory-score@10'] = memory, {**memory10, pairing: 'gt_score'}
runs['memory-score@1'] = memory, {**own, pairing: 'gt_score'}
runs['plain-half'] = plain, {**schedule(50), 'train_dataloader.batch_size': 2}
# Twice the steps.
runs['plain-long'] = plain, schedule(200)
runs['unlabelled-long@30'] = unlabelled_at(30.0, epochs=100)
# Four unlabelled images beside the four labelled ones of a plain run.
config, settings = unlabelled_at(30.0, epochs=100)
runs['unlabelled-added@30'] = config, {**settings, 'train_dataloader.batch_size': 8}
runs['ceiling-long'] = plain, {**schedule(20), indices: list(range(120))}

sections = {
    'A tenth of the labels': [
        (name, None if name == 'plain' else 'plain') for name in equal_compute
    ],
    'Added later': [
        (name, 'plain') for name in ('lt-mean@1', 'lt-all@1', 'memory-score@10', 'memory-score@1')
    ],
    'What the term adds to repetition': [
        (name, 'repeated') for name in ('lt@1', 'lt-score@1', 'lt-mean@1', 'lt-all@1')
    ],
    'Pairings': [
        *((f'lt-{name}@1', 'lt@1') for name in ('score', 'mean', 'all')),
        ('memory-score@10', 'memory@10'),
    ],
    'Why unlabelled images cost AP': [
        ('plain-half', 'plain'),
        ('unlabelled@0', 'plain-half'),
        ('unlabelled@0', 'plain'),
        ('unlabelled@3', 'unlabelled@0'),
        ('unlabelled@30', 'unlabelled@0'),
        ('unlabelled@30', 'plain-half'),
        ('unlabelled@3', 'plain'),
    ],
    'Twice the steps': [
        ('plain-long', None),
        ('unlabelled-long@30', 'plain-long'),
        ('unlabelled-added@30', 'plain-long'),
        ('ceiling-long', 'plain-long'),
        ('plain-long', 'plain'),
        ('unlabelled-long@30', 'unlabelled@30'),
        ('unlabelled-added@30', 'plain'),
    ],
}
figures: dict[str, Any] = {}
