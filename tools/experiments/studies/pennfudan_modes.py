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
# Measured of each trained model: 4 augmented copies, frames.
consistency = dict(num_replicas=4, score_threshold=0.3)
steadiness = dict(num_frames=16, max_images=50, score_threshold=0.3)
measured = dict(
    mean_iou='IoU of matched',
    score_jitter='Difference of scores',
    blinking='Blinking',
    center_jitter='Centre jitter',
    size_jitter='Size jitter',
    score_swing='Score swing',
    objects_per_frame='Objects a frame',
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
indices = 'train_dataloader.dataset.indices'
linear = dict(type='linear', start=0.0, begin=0.0, finish=0.3)
gaussian = dict(type='gaussian', start=0.0, begin=0.0, finish=0.4)
own = schedule(100)
# Half of a batch is unlabelled, so an epoch of the labelled images takes twice the steps.
half = {**schedule(50), 'train_dataloader.batch_size': 4}

runs: dict[str, tuple[str, dict[str, Any]]] = {
    'plain': (plain, own),
    'repeated': (lt, {**own, rho: 0.0}),
    'lt@1': (lt, own),
    'lt-score@1': (lt, {**own, 'model.bbox_head.pairing': 'gt_score'}),
    'memory@10': (memory, {**own, rho: dict(linear, end=10.0), rho_obj: dict(linear, end=1.0)}),
    'unlabelled@30': (
        unlabelled,
        {**half, rho: dict(gaussian, end=30.0), rho_obj: dict(gaussian, end=3.0)},
    ),
    'weak@10': (weak, {**half, rho: dict(gaussian, end=10.0), rho_obj: dict(gaussian, end=1.0)}),
    'ceiling': (plain, {**schedule(10), indices: list(range(120))}),
}
sections = {
    'A tenth of the labels': [(name, None if name == 'plain' else 'plain') for name in runs],
    'What the term adds to repetition': [('lt@1', 'repeated'), ('lt-score@1', 'repeated')],
    'Pairs by score': [('lt-score@1', 'lt@1')],
}
figures: dict[str, Any] = {}
