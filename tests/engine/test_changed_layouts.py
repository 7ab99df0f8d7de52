"""Runs that go on with another batch size, number of processes or data set than before."""

import copy
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS

from lt_mm.apis import train as api
from tests.ranks import run_ranks
from tests.training_data import classifier_config, write_pictures

NUM_IMAGES, REPEATS = 12, 2


@HOOKS.register_module()
class RecordImages(Hook):
    """Keeps the names of the images of every step, and what the loop counts."""

    def __init__(self):
        self.epochs = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        names = ['/'.join(Path(s.img_path).parts[-2:]) for s in data_batch['data_samples']]
        self.epochs.setdefault(runner.epoch, []).append(names)


@DATA_SAMPLERS.register_module()
class ReversedSampler(DefaultSampler):
    """Shows what the stock sampler shows, backwards."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


class Run:
    """A training that saves a checkpoint after every step."""

    def __init__(self, pictures, folder, resume=None, **options):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints = dict(type='CheckpointHook', by_epoch=False, interval=1)
        cfg = classifier_config(
            pictures,
            folder,
            **{
                'train_dataloader.batch_size': 4,
                'train_dataloader.sampler.num_repeats': REPEATS,
                'train_cfg.max_epochs': 3,
                'default_hooks.checkpoint': checkpoints,
                'custom_imports': dict(imports=[__name__]),
                'custom_hooks': [dict(type='RecordImages')],
                **copy.deepcopy(options),  # merging takes _delete_ out of them
            },
        )
        path = folder / 'config.py'
        cfg.dump(str(path))
        self.folder = folder
        self.runner = api.train(str(path), work_dir=str(folder), resume=resume and str(resume))
        hooks = self.runner.hooks
        self.epochs = next(each for each in hooks if isinstance(each, RecordImages)).epochs

    def after(self, iteration):
        return self.folder / f'iter_{iteration}.pth'

    def seen(self, epoch, stop=None):
        """How often each image was seen in the first steps of an epoch."""
        return Counter(name for step in self.epochs.get(epoch, [])[:stop] for name in step)


def sampler(**more):
    return {'train_dataloader.sampler': dict(num_repeats=REPEATS, **more)}


STOCK = {
    'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
    'model.head': dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=2,
        in_channels=64,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
}
BATCH = 'train_dataloader.batch_size'


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures') / 'images')


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(scope='module', params=['full', 'stock', *slow('spread', 'part')])
def first_run(request, pictures, tmp_path_factory):
    options = dict(
        full={},
        spread=sampler(placement='spread'),
        part={**sampler(repeat_fraction=0.5), 'model.head.allow_unrepeated': True},
        stock=STOCK,
    )[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return options, Run(pictures, folder, **options)


def assert_seen_alike(counter, repeats):
    """Every image in one step alone, as often as the sampler repeats it."""
    assert len(counter) == NUM_IMAGES
    assert set(counter.values()) <= repeats


def test_another_batch_size_within_an_epoch_and_again(first_run, pictures, tmp_path):
    options, first = first_run
    repeats = {1} if 'model.head' in options else {1, 2}
    steps = len(first.epochs[0])
    start = steps + 1  # one batch of the second epoch
    second = Run(pictures, tmp_path / 'second', first.after(start), **{**options, BATCH: 2})
    before = first.seen(1, 1)
    assert not before.keys() & second.seen(1).keys()
    assert_seen_alike(before + second.seen(1), repeats)
    assert_seen_alike(second.seen(2), repeats)
    # Steps are counted on, and the end is where the last step is.
    num_steps = sum(map(len, second.epochs.values()))
    assert second.runner.iter == second.runner.max_iters == start + num_steps
    # Once more within the same epoch, with a third size, and at the border after it.
    third = Run(pictures, tmp_path / 'third', second.after(start + 2), **{**options, BATCH: 6})
    assert_seen_alike(before + second.seen(1, 2) + third.seen(1), repeats)
    border = start + len(second.epochs[1])
    fourth = Run(pictures, tmp_path / 'fourth', second.after(border), **{**options, BATCH: 6})
    assert fourth.seen(1) == Counter() and third.epochs[2] == fourth.epochs[2]
    assert_seen_alike(fourth.seen(2), repeats)


def test_the_same_size_again_goes_on_batch_by_batch(first_run, pictures, tmp_path):
    """A run that was resumed in another layout, and then in this one, sees the same batches."""
    options, first = first_run
    start = len(first.epochs[0]) + 1
    options = {**options, BATCH: 2}
    second = Run(pictures, tmp_path / 'second', first.after(start), **options)
    third = Run(pictures, tmp_path / 'third', second.after(start + 2), **options)
    assert third.epochs[1] == second.epochs[1][2:] and third.epochs[2] == second.epochs[2]


def test_the_epoch_after_a_border_with_another_size(first_run, pictures, tmp_path):
    """Resuming twice after the change neither skips nor repeats a batch."""
    options, first = first_run
    border = len(first.epochs[0])
    second = Run(pictures, tmp_path / 'second', first.after(border), **{**options, BATCH: 2})
    third = Run(pictures, tmp_path / 'third', second.after(border + 3), **{**options, BATCH: 2})
    assert third.epochs[1] == second.epochs[1][3:] and third.epochs[2] == second.epochs[2]
    assert_seen_alike(second.seen(1, 3) + third.seen(1), {1, 2})


@pytest.mark.parametrize('start', [4, *slow(1, 2, 3)])
def test_a_pass_of_short_epochs(pictures, tmp_path, start):
    """Mode v1 shows every image in two epochs of three steps together."""
    options = {**sampler(mode='v1'), 'train_cfg.max_epochs': 4}
    first = Run(pictures, tmp_path / 'first', **options)
    assert [len(first.epochs[epoch]) for epoch in range(4)] == [3, 3, 3, 3]
    second = Run(pictures, tmp_path / 'second', first.after(start), **{**options, BATCH: 2})
    done = [first.seen(0, start), first.seen(1, max(start - 3, 0))]
    assert sum([*done, second.seen(0), second.seen(1)], Counter()) == Counter(
        dict.fromkeys(first.seen(0) + first.seen(1), REPEATS)
    )
    assert len(second.seen(2) + second.seen(3)) == NUM_IMAGES
    third = Run(pictures, tmp_path / 'third', second.after(start + 1), **options)
    after = [second.epochs[epoch] for epoch in (0, 1) if epoch in second.epochs]
    shown = Counter(after[0][0])
    whole = sum([*done, shown, third.seen(0), third.seen(1)], Counter())
    assert whole == Counter(dict.fromkeys(whole, REPEATS)) and len(whole) == NUM_IMAGES


def test_images_that_were_removed(first_run, pictures, tmp_path):
    """Within an epoch and after it; one of the images was seen before, and one was not."""
    options, first = first_run
    start = len(first.epochs[0]) + 1
    before = first.seen(1, 1)
    left = sorted(first.seen(0).keys() - before.keys())
    copied = tmp_path / 'images'
    shutil.copytree(pictures, copied)
    gone = {left[0], min(before)}
    for name in gone:
        os.remove(copied / name)
    second = Run(copied, tmp_path / 'second', first.after(start), **options)
    assert second.seen(1).keys() == set(left) - gone
    assert second.seen(2).keys() == first.seen(0).keys() - gone
    third = Run(copied, tmp_path / 'third', second.after(start + 1), **options)
    assert third.epochs[1] == second.epochs[1][1:] and third.epochs[2] == second.epochs[2]


ENDLESS = {
    'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=12, val_interval=100),
    'train_dataloader.sampler.type': 'lt_mm.InfiniteGroupedRepeatAugSampler',
}
STOCK_ENDLESS = {
    **STOCK,
    'train_cfg': ENDLESS['train_cfg'],
    'train_dataloader.sampler': dict(_delete_=True, type='InfiniteSampler', shuffle=True),
}


@pytest.mark.parametrize('kind', ['lt_mm', 'stock'])
def test_an_endless_stream_goes_on_where_it_stopped(pictures, tmp_path, kind):
    options, repeats = (ENDLESS, REPEATS) if kind == 'lt_mm' else (STOCK_ENDLESS, 1)
    first = Run(pictures, tmp_path / 'first', **options)
    whole = [name for step in first.epochs[0] for name in step]
    second = Run(pictures, tmp_path / 'second', first.after(5), **{**options, BATCH: 2})
    found = [name for step in second.epochs[0] for name in step]
    assert len(second.epochs[0]) == 7 and found == whole[20:34]
    third = Run(pictures, tmp_path / 'third', second.after(8), **{**options, BATCH: 6})
    found = [name for step in third.epochs[0] for name in step]
    assert len(third.epochs[0]) == 4 and found[:22] == whole[26:48]
    # The same size again: batch by batch.
    fourth = Run(pictures, tmp_path / 'fourth', third.after(10), **{**options, BATCH: 6})
    assert fourth.epochs[0] == third.epochs[0][2:]
    assert Counter(whole[: NUM_IMAGES * repeats]) == Counter(dict.fromkeys(whole, repeats))


def images_of_rank(rank, pictures, folder, resume, options):
    run = Run(Path(pictures), Path(folder) / f'rank{rank}', resume, **options)
    return run.epochs


@pytest.mark.slow
@pytest.mark.parametrize('options', [{}, STOCK], ids=['full', 'stock'])
def test_another_number_of_ranks_within_an_epoch(pictures, tmp_path, options):
    first = Run(pictures, tmp_path / 'first', **options)
    start = len(first.epochs[0]) + 1
    arguments = str(pictures), str(tmp_path / 'two'), str(first.after(start)), options
    ranks = run_ranks(images_of_rank, 2, *arguments, timeout=180)
    found = Counter(name for epochs in ranks for step in epochs[1] for name in step)
    assert_seen_alike(first.seen(1, 1) + found, {1, 2})
    assert len({len(epochs[1]) for epochs in ranks}) == 1
    saved = tmp_path / 'two' / 'rank0' / f'iter_{start + 1}.pth'
    last = Run(pictures, tmp_path / 'last', saved, **options)
    shown = Counter(name for epochs in ranks for name in epochs[1][0])
    assert_seen_alike(first.seen(1, 1) + shown + last.seen(1), {1, 2})


def test_an_unknown_order_is_refused_within_an_epoch_alone(pictures, tmp_path):
    sampler = dict(_delete_=True, type='ReversedSampler')
    options = {**STOCK, 'train_dataloader.sampler': sampler}
    first = Run(pictures, tmp_path / 'first', **options)
    with pytest.raises(ValueError, match='batch_size from 4 to 2.*ReversedSampler.*epoch_N'):
        Run(pictures, tmp_path / 'second', first.after(4), **{**options, BATCH: 2})
    # After the last step of the second epoch nothing of it is left, whatever its order was.
    third = Run(pictures, tmp_path / 'third', first.after(6), **{**options, BATCH: 2})
    assert third.epochs.keys() == {2} and len(third.epochs[2]) == 6
    assert third.runner.iter == third.runner.max_iters == 12
    fourth = Run(pictures, tmp_path / 'fourth', third.after(8), **{**options, BATCH: 2})
    assert fourth.epochs == {2: third.epochs[2][2:]}
