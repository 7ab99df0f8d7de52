"""Which mode makes a converged classifier steadier: ResNet-20, fine-tuned on CIFAR-10.

All arms go on from the same weights and take 790 steps of 64 images. Nothing is chosen, so that
validation images are test images. docs/studies/cifar10_tuned/plan.md says how they are compared.
"""

from typing import Any

plain = 'configs/studies/cifar10.py'
lt = 'configs/studies/cifar10_lt.py'
memory = 'configs/studies/cifar10_few_memory.py'
unlabelled = 'configs/studies/cifar10_few_lt_unlabelled.py'
weak = 'configs/studies/cifar10_few_lt_weak.py'

metric = 'accuracy/top1'
metric_name = 'Top-1, %'
seeds = [0, 1, 2, 3, 4]
paired = True
bfloat16 = True
# Measured of each trained model on test images: 8 augmented copies, frames, corruptions.
consistency = dict(num_replicas=8, max_images=500)
steadiness = dict(num_frames=16, max_images=500)
corruptions = dict(severities=(1, 3, 5))
measured = dict(
    mean_kl='KL to the mean',
    calibrated_kl='The same, calibrated',
    agreement='Agreement',
    label_changes='Label changes',
    frame_kl='KL of frames',
    ece='Calibration error',
    mPC='mPC',
)

epochs = 10
labelled = list(range(0, 50000, 10))
schedule: dict[str, Any] = {
    'load_from': 'data/weights/resnet20_cifar10_jpeg.pth',
    'train_cfg.max_epochs': epochs,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'param_scheduler.total_steps': epochs,
    'param_scheduler.eta_max': 0.01,
    'val_dataloader.dataset.indices': list(range(0, 10000, 10)),
    'test_dataloader.dataset.indices': None,
}
own = {**schedule, 'train_dataloader.dataset.indices': labelled}


def unlabelled_part(share: float, epochs: int) -> dict[str, Any]:
    """A run in which this share of each batch is unlabelled; labelled images make the epochs."""
    return {
        **schedule,
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.interval': 1,
        'param_scheduler.total_steps': epochs,
        'train_dataloader.sampler.unlabelled_share': share,
        'train_dataloader.dataset.labelled.indices': labelled,
        'train_dataloader.dataset.unlabelled.indices': [i for i in range(50000) if i % 10],
    }


half = unlabelled_part(0.5, epochs // 2)
rho, momentum = 'model.head.rho', 'model.head.memory.momentum'
linear = dict(type='linear', start=0.0, begin=0.0, finish=0.3)
gaussian = dict(type='gaussian', start=0.0, begin=0.0, finish=0.4)
down = dict(type='linear', start=3.0, end=0.0, begin=0.7, finish=1.0)
memory3 = {**own, rho: dict(linear, end=3.0)}
three = {rho: dict(gaussian, end=3.0)}

runs: dict[str, tuple[str, dict[str, Any]]] = {
    'plain': (plain, own),
    'repeated': (lt, {**own, rho: 0.0}),
    'lt@1': (lt, own),
    'lt@10': (lt, {**own, rho: 10.0}),
    'memory@3': (memory, memory3),
    'memory@10': (memory, {**own, rho: dict(linear, end=10.0)}),
    'unlabelled@10': (unlabelled, half),
    'weak@1': (weak, half),
}
# One setting at a time differs from the run that the section names.
settings: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    'lt@1': {
        'lt@3': (lt, {**own, rho: 3.0}),
        'lt@1-detached': (lt, {**own, 'model.head.detach_mean': True}),
        'lt@1-m4': (lt, {**own, 'train_dataloader.sampler.num_repeats': 4}),
    },
    'memory@3': {
        'memory@1': (memory, {**own, rho: dict(linear, end=1.0)}),
        'memory@3-momentum0': (memory, {**memory3, momentum: 0.0}),
        'memory@3-momentum0.5': (memory, {**memory3, momentum: 0.5}),
        'memory@3-momentum0.9': (memory, {**memory3, momentum: 0.9}),
        'memory@3-unramped': (memory, {**own, rho: 3.0}),
        'memory@3-down': (memory, {**own, rho: [dict(linear, end=3.0), down]}),
    },
    'unlabelled@3': {
        'unlabelled@1': (unlabelled, {**half, rho: dict(gaussian, end=1.0)}),
        # 800, 790 and 750 steps.
        'unlabelled@3-share0.22': (unlabelled, {**unlabelled_part(14 / 64, 8), **three}),
        'unlabelled@3-share0.69': (unlabelled, {**unlabelled_part(44 / 64, 3), **three}),
    },
}
equal_compute = [*runs]
runs['unlabelled@3'] = unlabelled, {**half, **three}
for others in settings.values():
    runs.update(others)
# A second training of two arms, in which everything is measured.
again: dict[str, tuple[str, dict[str, Any]]] = {
    'plain-again': runs['plain'],
    'memory@1-again': runs['memory@1'],
}
runs.update(again)

# Copies that differ by more than affine maps, for the corruptions.
augmix = 'configs/studies/cifar10_augmix'
mixed: dict[str, tuple[str, dict[str, Any]]] = {
    'augmix-plain': (f'{augmix}.py', own),
    'augmix-repeated': (f'{augmix}_lt.py', {**own, rho: 0.0}),
    'augmix-lt@1': (f'{augmix}_lt.py', own),
    'augmix-lt@3': (f'{augmix}_lt.py', {**own, rho: 3.0}),
    'augmix-memory@1': (f'{augmix}_memory.py', {**own, rho: dict(linear, end=1.0)}),
}
runs.update(mixed)

sections = {
    'Equal compute': [(name, None if name == 'plain' else 'plain') for name in equal_compute],
    'What the term adds to repetition': [(name, 'repeated') for name in ('lt@1', 'lt@10')],
    'Settings, beside plain': [
        (name, 'plain') for base, others in settings.items() for name in (base, *others)
    ],
    **{
        f'Settings, beside {base}': [(name, base) for name in others]
        for base, others in settings.items()
    },
    'AugMix, beside affine maps alone': [(name, 'plain-again') for name in mixed],
    'AugMix, beside itself': [(name, 'augmix-plain') for name in mixed if 'plain' not in name],
    'Trained a second time': [('plain-again', None), ('memory@1-again', 'plain-again')],
}
figures: dict[str, Any] = {}
