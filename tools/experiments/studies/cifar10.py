"""The CIFAR-10 study: which form of LossTransform is ahead, and where.

A run is a config and settings that differ from it. Names are `<loss>[-<what differs>]`:
`plain` is cross entropy, `repeated` the same on repeated images (rho = 0), `lt` the
whole loss. Equal images seen, unless the name says otherwise: `2x` is twice as many, `4x`
four times. An equal number of *epochs* with m replicas is m times the images, mode
'full'.
"""

from typing import Any

plain = 'configs/studies/cifar10.py'
lt = 'configs/studies/cifar10_lt.py'
few_plain = 'configs/studies/cifar10_few.py'
few_lt = 'configs/studies/cifar10_few_lt.py'
supcon = 'configs/studies/cifar10_supcon.py'

metric = 'accuracy/top1'
seeds = [0, 1, 2]
# Measured of each trained model: 8 augmented copies of test images.
consistency = dict(num_replicas=8, max_images=500)
measured = dict(mean_kl='KL to the mean', agreement='Agreement')

repeats = 'train_dataloader.sampler.num_repeats'
mode = 'train_dataloader.sampler.mode'
fraction = 'train_dataloader.sampler.repeat_fraction'
start_epoch = 'train_dataloader.sampler.start_epoch'
rho = 'model.head.rho'
detach = 'model.head.detach_mean'
unrepeated = 'model.head.allow_unrepeated'
augments = 'model.train_cfg.augments'


def longer(times):
    """Settings of a schedule of more epochs, validated equally often."""
    return {
        'train_cfg.max_epochs': 20 * times,
        'param_scheduler.total_steps': 20 * times,
        'train_cfg.val_interval': 4 * times,
        'default_hooks.checkpoint.interval': 4 * times,
    }


def few(settings, times=1):
    """Settings of 500 images: 80 epochs, as many seen as of 2,000; or so many times."""
    return {**longer(4 * times), **settings}


cutout = dict(type='lt_mm.Cutout', length=16)
grouped = [dict(type='lt_mm.GroupedCutMix', alpha=1.0), dict(type='lt_mm.GroupedMixup', alpha=1.0)]
stock = [dict(type='CutMix', alpha=1.0), dict(type='Mixup', alpha=1.0)]
mixes: dict[str, list[Any]] = dict(cutout=[cutout], cutmix=[0], mixup=[1], all=[cutout, 0, 1])


def mixed(name, partners):
    """Settings of one way of mixing; numbers stand for CutMix and mixup."""
    chosen = [partners[each] if isinstance(each, int) else each for each in mixes[name]]
    settings: dict[str, Any] = {augments: chosen}
    if partners is grouped:
        settings['data_preprocessor.type'] = 'lt_mm.GroupedClsDataPreprocessor'
    return settings


# A quarter as many images again, from a trained model.
tuning = few(
    {
        'optim_wrapper.optimizer.lr': 0.01,
        'param_scheduler': dict(
            _delete_=True,
            type='CosineAnnealingLR',
            T_max=20,
            by_epoch=True,
            convert_to_iter_based=True,
        ),
        'train_cfg.max_epochs': 20,
        'train_cfg.val_interval': 5,
        'default_hooks.checkpoint.interval': 5,
    }
)
tuning.pop('param_scheduler.total_steps')
part = {fraction: 0.5, unrepeated: True}
micro_batches = {
    'train_cfg': dict(
        _delete_=True,
        type='lt_mm.MicroBatchTrainLoop',
        max_epochs=20,
        val_interval=4,
        num_micro_batches=2,
    )
}
late = {
    start_epoch: 10,
    rho: dict(_delete_=True, type='linear', start=0, end=1, begin=0.5, finish=0.55),
}

runs = {
    'plain': (plain, {}),
    'repeated': (lt, {rho: 0.0}),
    'lt': (lt, {}),
    # Few images, many epochs.
    'few-plain': (few_plain, few({})),
    'few-repeated': (few_lt, few({rho: 0.0})),
    'few-lt': (few_lt, few({})),
    **{f'few-lt-rho={value}': (few_lt, few({rho: value})) for value in (3.0, 10.0)},
    'few-lt-fraction=0.5': (few_lt, few(part)),
    'few-lt-late': (few_lt, few({**late, start_epoch: 40})),
    'few-repeated-late': (few_lt, few({rho: 0.0, start_epoch: 40})),
    'few-lt-m=4': (few_lt, few({repeats: 4})),
    # And twice and four times as many.
    'few-plain-2x': (few_plain, few({}, 2)),
    'few-repeated-2x': (few_lt, few({rho: 0.0}, 2)),
    'few-lt-2x': (few_lt, few({}, 2)),
    'few-lt-2x-rho=3.0': (few_lt, few({rho: 3.0}, 2)),
    'few-plain-4x': (few_plain, few({}, 4)),
    'few-repeated-4x': (few_lt, few({rho: 0.0}, 4)),
    'few-lt-4x': (few_lt, few({}, 4)),
    'few-lt-4x-rho=0.3': (few_lt, few({rho: 0.3}, 4)),
    'few-lt-4x-detached': (few_lt, few({detach: True}, 4)),
    'few-plain-tuned': (few_plain, tuning, 'few-plain'),
    'few-repeated-tuned': (few_lt, {**tuning, rho: 0.0}, 'few-plain'),
    'few-lt-tuned': (few_lt, tuning, 'few-plain'),
    'few-lt-tuned-rho=3.0': (few_lt, {**tuning, rho: 3.0}, 'few-plain'),
    # The weight, and the gradient through the mean.
    **{f'lt-rho={value}': (lt, {rho: value}) for value in (0.1, 0.3, 3.0, 10.0)},
    **{f'lt-detached-rho={value}': (lt, {rho: value, detach: True}) for value in (1.0, 3.0)},
    # The number of replicas.
    **{f'repeated-m={m}': (lt, {repeats: m, rho: 0.0}) for m in (4, 8)},
    **{f'lt-m={m}': (lt, {repeats: m}) for m in (4, 8)},
    # Where the loss may be ahead at equal compute.
    **{f'lt-fraction={share}': (lt, {**part, fraction: share}) for share in (0.25, 0.5)},
    'lt-ramp': (lt, {rho: dict(_delete_=True, type='linear', start=0, end=2)}),
    'lt-late': (lt, late),
    'repeated-late': (lt, {start_epoch: 10, rho: 0.0}),
    # Batch norm sees one replica of every source: the loop with micro-batches.
    'lt-micro-batches': (lt, micro_batches),
    'supcon': (supcon, {}),
    # Mixed labels.
    **{f'plain-{name}': (plain, mixed(name, stock)) for name in mixes},
    **{f'repeated-{name}': (lt, {rho: 0.0, **mixed(name, grouped)}) for name in mixes},
    **{f'lt-{name}': (lt, mixed(name, grouped)) for name in mixes},
    # Equal epochs.
    'repeated-full': (lt, {mode: 'full', rho: 0.0}),
    'lt-full': (lt, {mode: 'full'}),
    'plain-2x': (plain, longer(2)),
    **{
        f'repeated-full-{name}': (lt, {mode: 'full', rho: 0.0, **mixed(name, grouped)})
        for name in mixes
    },
    **{f'lt-full-{name}': (lt, {mode: 'full', **mixed(name, grouped)}) for name in mixes},
    **{f'repeated-full-m={m}': (lt, {mode: 'full', repeats: m, rho: 0.0}) for m in (4, 8)},
    **{f'lt-full-m={m}': (lt, {mode: 'full', repeats: m}) for m in (4, 8)},
}

metric_name = 'Top-1, %'
kinds = ('plain', 'repeated', 'lt')
# Tables: runs with the run that each is compared with.
sections = {
    'Equal images seen': [
        (
            name if mix is None else f'{name}-{mix}',
            None if name == 'plain' else 'plain' if mix is None else f'plain-{mix}',
        )
        for mix in (None, *mixes)
        for name in kinds
    ]
    + [('supcon', 'plain')],
    'Few images: 50 a class, 80 epochs, equal images seen': [
        (name, None if name == 'few-plain' else 'few-plain')
        for name in (
            'few-plain',
            'few-repeated',
            'few-lt',
            'few-lt-rho=3.0',
            'few-lt-rho=10.0',
            'few-lt-fraction=0.5',
            'few-lt-late',
            'few-repeated-late',
            'few-lt-m=4',
        )
    ],
    'Few images, 160 and 320 epochs': [
        ('few-plain-2x', 'few-plain'),
        *[(name, 'few-plain-2x') for name in ('few-repeated-2x', 'few-lt-2x', 'few-lt-2x-rho=3.0')],
        ('few-plain-4x', 'few-plain-2x'),
        *[
            (name, 'few-plain-4x')
            for name in ('few-repeated-4x', 'few-lt-4x', 'few-lt-4x-rho=0.3', 'few-lt-4x-detached')
        ],
    ],
    'Fine-tuning on few images': [
        ('few-plain', None),
        *[
            (name, 'few-plain-tuned')
            for name in ('few-repeated-tuned', 'few-lt-tuned', 'few-lt-tuned-rho=3.0')
        ],
        ('few-plain-tuned', 'few-plain'),
    ],
    'Equal epochs, m times the images': [
        (
            f'{name}-full' if mix is None else f'{name}-full-{mix}',
            'plain' if mix is None else f'plain-{mix}',
        )
        for mix in (None, *mixes)
        for name in kinds[1:]
    ]
    + [(f'{name}-full-m={m}', 'plain') for m in (4, 8) for name in kinds[1:]]
    + [('plain-2x', 'plain'), ('lt-full', 'plain-2x')],
    'Number of replicas m, equal images': [
        (f'{name}-m={m}', 'plain') for m in (4, 8) for name in kinds[1:]
    ]
    + [(f'lt-m={m}', f'repeated-m={m}') for m in (4, 8)],
    'Weight rho, and the gradient through the mean': [
        *[(f'lt-rho={value}', 'lt') for value in (0.1, 0.3, 3.0, 10.0)],
        *[
            (f'lt-detached-rho={value}', 'lt' if value == 1 else 'lt-rho=3.0')
            for value in (1.0, 3.0)
        ],
    ],
    'Ideas for equal compute': [
        (name, 'plain')
        for name in (
            'lt-fraction=0.25',
            'lt-fraction=0.5',
            'lt-ramp',
            'lt-late',
            'repeated-late',
            'lt-micro-batches',
        )
    ],
}
figures = dict(
    curves=dict(kind='curves', runs=['plain', 'repeated', 'lt']),
    curves_few=dict(kind='curves', runs=['few-plain', 'few-repeated', 'few-lt']),
    matrices=dict(kind='matrices', runs=['few-plain', 'few-lt'], images=[40, 740, 1460]),
    replicas=dict(
        kind='levels',
        xlabel='replicas m',
        log=True,
        series={
            f'{name}{title}': {
                1: 'plain',
                2: name + full,
                4: f'{name}{full}-m=4',
                8: f'{name}{full}-m=8',
            }
            for full, title in (('', ', equal images'), ('-full', ', equal epochs'))
            for name in kinds[1:]
        },
    ),
    rho=dict(
        kind='levels',
        xlabel='rho',
        log=True,
        series={
            'gradient through the mean': {
                value: 'lt' if value == 1 else f'lt-rho={value}'
                for value in (0.1, 0.3, 1.0, 3.0, 10.0)
            },
            'mean detached': {value: f'lt-detached-rho={value}' for value in (1.0, 3.0)},
        },
    ),
)
