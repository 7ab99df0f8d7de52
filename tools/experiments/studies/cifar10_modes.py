"""Which mode pays: ResNet-20 on 500, 2,000 and 10,000 labelled images of CIFAR-10.

All arms of a block take equally many steps of 64 images, within 3 %. Seed 5 is the pilot, on which
the learning rate of each arm is chosen (``--seeds 5``); the study itself takes each arm at its own
rate alone (``--only '*-plain@0.2' '*-repeated@0.1'`` and so on). docs/studies/cifar10_modes/plan.md
says how they are compared.
"""

from typing import Any

plain = 'configs/studies/cifar10.py'
lt = 'configs/studies/cifar10_lt.py'
memory = 'configs/studies/cifar10_few_memory.py'
unlabelled = 'configs/studies/cifar10_few_lt_unlabelled.py'
weak = 'configs/studies/cifar10_few_lt_weak.py'
fixmatch = 'configs/studies/cifar10_few_lt_fixmatch.py'
rand = 'configs/studies/cifar10_few_rand'

metric = 'accuracy/top1'
metric_name = 'Validation top-1, %'
seeds = [0, 1, 2, 3, 4]
paired = True
bfloat16 = True
# Measured of each trained model on validation images: 8 augmented copies, frames, corruptions.
consistency = dict(num_replicas=8, max_images=500)
steadiness = dict(num_frames=16, max_images=500)
corruptions = dict(severities=(1, 3, 5), max_images=500)
measured = dict(
    mean_kl='KL to the mean',
    calibrated_kl='The same, calibrated',
    agreement='Agreement',
    label_changes='Label changes',
    frame_kl='KL of frames',
    ece='Calibration error',
    mPC='mPC',
)

# Choices are made on every 25th training image, which no arm trains on; the test images come last.
held_out = list(range(24, 50000, 25))
trained = [index for index in range(50000) if index % 25 != 24]
common: dict[str, Any] = {
    'val_dataloader.dataset.data_root': 'data/cifar10_folder/train',
    'val_dataloader.dataset.indices': held_out,
    'test_dataloader.dataset.indices': None,
}
# Labelled images: the stride of their indices, and epochs: 2,560, 640 and 3,140 steps of 64 images.
blocks = {500: (100, 320), 2000: (25, 20), 10000: (5, 20)}
rates = (0.05, 0.1, 0.2)


def schedule(epochs: int) -> dict[str, Any]:
    """A run of this many epochs, validated four times."""
    interval = max(epochs // 4, 1)
    return {
        'train_cfg.max_epochs': epochs,
        'param_scheduler.total_steps': epochs,
        'train_cfg.val_interval': interval,
        'default_hooks.checkpoint.interval': interval,
    }


def arms_of(stride: int, epochs: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """The arms of a block, by name."""
    own = {
        **common,
        **schedule(epochs),
        'train_dataloader.dataset.indices': [*range(0, 50000, stride)],
    }
    # Half of a batch is unlabelled, so an epoch of the labelled images takes twice the steps.
    half = {
        **common,
        **schedule(epochs // 2),
        'train_dataloader.dataset.labelled.indices': [*range(0, 50000, stride)],
        'train_dataloader.dataset.unlabelled.indices': trained,
    }
    rho, late = 'model.head.rho', 'train_dataloader.sampler'
    # Eight labelled images and 28 pairs a step; 1/28 is the weight of a pair, as in FixMatch.
    most = {f'{late}.unlabelled_share': 56 / 64, rho: 64 / 28}
    ramp = dict(type='linear', start=0.0, begin=0.0, finish=0.3)
    momentum = 'model.head.memory.momentum'
    strong = {**own, rho: dict(ramp, end=3.0), momentum: 0.7}
    gentle = {**own, rho: dict(ramp, end=1.0), momentum: 0.5}
    afterwards = dict(type='linear', start=0.0, end=1.0, begin=0.5, finish=0.8)
    sampler = dict(
        _delete_=True,
        type='lt_mm.GroupedRepeatAugSampler',
        num_repeats=2,
        mode='v1',
        start_epoch=epochs // 2,
    )
    # All labels: passes over 40,000 images, of which there are as many steps.
    images = len(range(0, 50000, stride))
    many = [index for place, index in enumerate(trained) if place % 6]
    ceiling = {
        **common,
        **schedule(round(epochs * images / len(many))),
        'train_dataloader.dataset.indices': many,
    }
    return {
        'plain': (plain, own),
        'repeated': (lt, {**own, rho: 0.0}),
        'lt': (lt, own),
        'memory': (memory, strong),
        'memory-gentle': (memory, gentle),
        'memory-late': (memory, {**gentle, late: sampler, 'model.head.allow_unrepeated': True}),
        # Remedies: rho rises in the second half, or to less.
        'memory-afterwards': (memory, {**gentle, rho: afterwards}),
        'memory-0.3': (memory, {**gentle, rho: dict(ramp, end=0.3)}),
        # After 3 had turned out to be better than 1 with 500 labels.
        'memory-10': (memory, {**strong, rho: dict(ramp, end=10.0)}),
        'unlabelled': (unlabelled, half),
        'weak': (weak, half),
        # Remedies: strong copies, a higher threshold and more weight; and fewer labelled images.
        'fixmatch': (fixmatch, half),
        'fixmatch-most': (fixmatch, {**half, **schedule(epochs // 8), **most}),
        # What of fixmatch is its term: the same images without it, and its augmentation alone.
        'fixmatch-0': (fixmatch, {**half, rho: 0.0}),
        'rand': (f'{rand}.py', own),
        # The modes beside it, all with the strong augmentation.
        'rand-lt': (f'{rand}_lt.py', own),
        'rand-repeated': (f'{rand}_lt.py', {**own, rho: 0.0}),
        'rand-memory': (f'{rand}_memory.py', {**own, rho: dict(ramp, end=1.0)}),
        'rand-memory-0.3': (f'{rand}_memory.py', {**own, rho: dict(ramp, end=0.3)}),
        'rand-fixmatch': (f'{rand}_lt_fixmatch.py', half),
        'ceiling': (plain, ceiling),
    }


runs: dict[str, tuple[str, dict[str, Any]]] = {
    f'{images}-{name}@{rate}': (config, {**settings, 'param_scheduler.eta_max': rate})
    for images, (stride, epochs) in blocks.items()
    for name, (config, settings) in arms_of(stride, epochs).items()
    for rate in rates
}

# Beside the plain run of the same block and rate.
sections: dict[str, list[tuple[str, str | None]]] = {
    f'{images} labelled images': [
        (name, None if '-plain@' in name else f'{images}-plain@{name.partition("@")[2]}')
        for name in runs
        if name.startswith(f'{images}-') and '-rand-' not in name
    ]
    for images in blocks
}
# The modes with RandAugment, whatever their rates, beside plain runs with it.
sections |= {
    f'{images} labelled images, with RandAugment': [
        (name, f'{images}-rand@0.2') for name in runs if name.startswith(f'{images}-rand-')
    ]
    for images in blocks
}
figures: dict[str, Any] = {}
