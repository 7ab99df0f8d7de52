"""Which mode pays for a detector: YOLOX-Nano from COCO's weights on BCCD, few and many labels.

All arms of a block take equally many steps of 4 images. Seed 5 is the pilot, on which rho is chosen
with 20 labelled images (``--seeds 5 --only '20-*'``). docs/studies/bccd_modes/plan.md says how they
are compared.
"""

from typing import Any

plain = 'configs/studies/bccd.py'
lt = 'configs/studies/bccd_lt.py'
memory = 'configs/studies/bccd_memory.py'
unlabelled = 'configs/studies/bccd_10_lt_unlabelled.py'
weak = 'configs/studies/bccd_10_lt_weak.py'

metric = 'coco/bbox_mAP'
metric_name = 'box AP'
scale = 100
seeds = [0, 1, 2, 3, 4]
paired = True
# Measured of each trained model on validation images: 4 augmented copies, frames, shifted
# images, corruptions.
consistency = dict(num_replicas=4, score_threshold=0.3)
steadiness = dict(num_frames=16, max_images=40, score_threshold=0.3)
shifts = dict(pixels=(1, 2, 4, 8, 16, 32), max_images=40, score_threshold=0.3)
kinds = ('gaussian_noise', 'defocus_blur', 'fog', 'contrast', 'jpeg_compression')
corruptions = dict(kinds=kinds, severities=(3,))
measured = dict(
    mean_iou='IoU of matched',
    score_jitter='Difference of scores',
    blinking='Blinking',
    center_jitter='Centre jitter',
    size_jitter='Size jitter',
    score_swing='Score swing',
    mPC='mPC',
)

images = 205
# Labelled images: the stride of their indices, and epochs: 520 steps of 4 images, 510 of all.
blocks = {20: (10, 104), 52: (4, 40), 204: (1, 10)}
rhos = (3.0, 10.0, 30.0)


def schedule(epochs: int) -> dict[str, Any]:
    """A run of this many epochs, validated four times."""
    warm_up = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50)
    cosine = dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        T_max=epochs,
        eta_min=1e-6,
        convert_to_iter_based=True,
    )
    interval = max(epochs // 4, 1)
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': interval,
        'param_scheduler': [warm_up, cosine],
        'default_hooks.checkpoint.interval': interval,
    }


def arms_of(number: int, stride: int, epochs: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The arms of a block, by name, those with a term once for each rho."""
    labelled = list(range(0, images, stride))[:number]
    others = [index for index in range(images) if index not in labelled]
    dataset = 'train_dataloader.dataset'
    own = {
        **schedule(epochs),
        f'{dataset}.ann_file': 'annotations/train.json',
        f'{dataset}.indices': labelled,
    }
    # Half of a batch is unlabelled, so an epoch of the labelled images takes twice the steps.
    half = {
        **schedule(epochs // 2),
        'train_dataloader.batch_size': 4,
        f'{dataset}.labelled.indices': labelled,
        f'{dataset}.unlabelled.indices': others,
    }
    rho, pairing = 'model.bbox_head.rho', 'model.bbox_head.pairing'
    # The arms of the plan are older than the objectness term.
    before = {f'{rho}_obj': 0.0}
    arms: dict[str, tuple[str, dict[str, Any]]] = {
        'plain': (plain, own),
        'repeated': (lt, {**own, rho: 0.0}),
        # As the wrapper comes: all terms with rho = 1.
        'lt-default': (lt, own),
        'lt-default-without': (lt, {**own, **before}),
        'lt-default-score': (lt, {**own, pairing: 'gt_score'}),
    }
    if number < 204:
        all_labels = {f'{dataset}.indices': list(range(204))}
        arms['ceiling'] = plain, {**own, **schedule(blocks[204][1]), **all_labels}
    linear = dict(type='linear', start=0.0, begin=0.0, finish=0.3)
    gaussian = dict(type='gaussian', start=0.0, begin=0.0, finish=0.4)
    for value in rhos:
        with_term = {
            'lt': (lt, {**own, rho: value}),
            'memory': (memory, {**own, rho: dict(linear, end=value)}),
        }
        if number < 204:
            ramp = {**half, rho: dict(gaussian, end=value)}
            with_term |= {'unlabelled': (unlabelled, ramp), 'weak': (weak, ramp)}
        for name, (config, settings) in with_term.items():
            arms[f'{name}@{value:g}'] = config, {**settings, **before}
            # With a tenth of rho, this term has about the gradient of that of the classes.
            tenth = value / 10 if name == 'lt' else dict(settings[rho], end=value / 10)
            arms[f'{name}-obj@{value:g}'] = config, {**settings, f'{rho}_obj': tenth}
        for name, config in {'lt': lt, 'memory': memory}.items():
            score = {**arms[f'{name}-obj@{value:g}'][1], pairing: 'gt_score'}
            arms[f'{name}-obj-score@{value:g}'] = config, score
        box = {**arms[f'lt-obj@{value:g}'][1], f'{rho}_bbox': 10 * value}
        arms[f'lt-obj-box@{value:g}'] = lt, box
    return arms


runs: dict[str, tuple[str, dict[str, Any]]] = {
    f'{number}-{name}': arm
    for number, (stride, epochs) in blocks.items()
    for name, arm in arms_of(number, stride, epochs).items()
}
sections = {
    f'{number} labelled images': [
        (name, None if name.endswith('-plain') else f'{number}-plain')
        for name in runs
        if name.startswith(f'{number}-')
    ]
    for number in blocks
}
figures: dict[str, Any] = {}
