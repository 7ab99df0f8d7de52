"""Runs that are killed or asked to stop end as if nothing had happened."""

import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader

from lt_mm.engine.checkpoints import find_resumable, load_weights_only
from lt_mm.engine.hooks.preemption_hook import REQUEUE_EXIT_CODE, SIGNALS, PreemptionHook
from lt_mm.engine.hooks.resume_hook import ResumeHook
from tests.engine.interrupted_runs import (
    BATCHES,
    assert_same_weights,
    output,
    run,
    trace,
    validation,
    write_config,
)
from tests.paths import REPOSITORY
from tests.training_data import write_pictures


def iter_based():
    return {
        'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=10, val_interval=4),
        'train_dataloader.sampler.type': 'lt_mm.InfiniteGroupedRepeatAugSampler',
        'default_hooks.checkpoint': dict(type='CheckpointHook', by_epoch=False, interval=5),
    }


WRITE_EVENTS = (
    'half of a checkpoint',
    'a checkpoint without its name',
    'a new checkpoint',
    'half of last_checkpoint',
    'last_checkpoint without its name',
    'a new last_checkpoint',
)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures') / 'images')


@pytest.fixture(scope='module')
def uninterrupted(pictures, tmp_path_factory):
    """The config and the work directory of a run of three epochs."""
    folder = tmp_path_factory.mktemp('uninterrupted')
    config = write_config(pictures, folder)
    assert run(config, folder / 'run') == 0, output(folder / 'run')
    return config, folder / 'run'


def test_killed_while_it_trains_and_while_it_writes(uninterrupted, tmp_path):
    """Events: 0-2 of epoch_1.pth, 3-5 of last_checkpoint, and so on."""
    config, reference = uninterrupted
    kills = [
        dict(write_event=0),  # half of the first checkpoint
        dict(write_event=3),  # half of the first last_checkpoint
        dict(interrupt=dict(number=signal.SIGKILL, at=BATCHES + 2)),
        dict(write_event=1),
    ]  # the second checkpoint, before it has its name
    for kill in kills:
        assert run(config, tmp_path, **kill) == -signal.SIGKILL, output(tmp_path)
    assert run(config, tmp_path) == 0, output(tmp_path)
    # Resumed from nothing, from epoch_1.pth without last_checkpoint, and from epoch_1.pth twice.
    assert trace(tmp_path, 'start') == [f'start {n * BATCHES}' for n in (0, 0, 1, 1, 1)]
    assert_same_weights(tmp_path / 'epoch_3.pth', reference / 'epoch_3.pth')
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_3.pth']


@pytest.mark.slow
def test_killed_twenty_times(uninterrupted, pictures, tmp_path, capsys):
    config = write_config(pictures, tmp_path, **{'train_cfg.max_epochs': 14})
    assert run(config, tmp_path / 'reference') == 0
    rng, work_dir, table = random.Random(0), tmp_path / 'run', []
    for number in range(20):
        saved = find_resumable(work_dir)
        start = load_weights_only(saved)['meta']['iter'] if saved else 0
        if number % 2:
            kill = dict(write_event=rng.randrange(6))
            where = WRITE_EVENTS[kill['write_event']]
        else:
            at = start + rng.randrange(2 * BATCHES)
            kill = dict(interrupt=dict(number=signal.SIGKILL, at=at))
            where = f'step {at}'
        assert run(config, work_dir, **kill) == -signal.SIGKILL, output(work_dir)
        assert trace(work_dir, 'start')[-1] == f'start {start}'
        table.append(f'{number + 1:2} resumed from {start:2}, killed at: {where}')
    assert run(config, work_dir) == 0, output(work_dir)
    with capsys.disabled():
        print('', *table, sep='\n')
    starts = [int(line.split()[1]) for line in trace(work_dir, 'start')]
    assert len(starts) == 21 and starts == sorted(starts)
    assert trace(work_dir, 'step')[-1].startswith(f'step {14 * BATCHES - 1} ')
    assert_same_weights(work_dir / 'epoch_14.pth', tmp_path / 'reference/epoch_14.pth')


def check_preempted(config, reference, work_dir, interrupt, num_done, last):
    """Interrupts a run once, resumes it, and compares it with one that was not interrupted."""
    assert run(config, work_dir, interrupt) == REQUEUE_EXIT_CODE, output(work_dir)
    saved = work_dir / f'preempted_iter_{num_done}.pth'
    assert saved.is_file()
    assert (work_dir / 'last_checkpoint').read_text() == str(saved)
    assert signal.Signals(interrupt['number']).name in output(work_dir)
    assert run(config, work_dir) == 0, output(work_dir)
    assert trace(work_dir, 'start') == ['start 0', f'start {num_done}']
    # The same samples in the same steps, and each validation once, with its result.
    assert trace(work_dir, 'step', 'val') == trace(reference, 'step', 'val')
    assert_same_weights(work_dir / last, reference / last)
    assert not saved.exists()


@pytest.mark.parametrize('at', [2 * BATCHES - 1, pytest.param(BATCHES + 2, marks=pytest.mark.slow)])
def test_preempted_in_an_epoch_and_at_its_last_step(uninterrupted, tmp_path, at):
    interrupt = dict(number=signal.SIGTERM, at=at)
    check_preempted(*uninterrupted, tmp_path, interrupt, at + 1, 'epoch_3.pth')


@pytest.mark.parametrize(
    'stage, at', [('val', BATCHES), pytest.param('train', BATCHES - 1, marks=pytest.mark.slow)]
)
def test_preempted_in_a_validation_of_averaged_weights(pictures, tmp_path, stage, at):
    config = write_config(
        pictures,
        tmp_path,
        hooks=[dict(type='EMAHook', momentum=0.1)],
        **{**validation(pictures), 'train_cfg.max_epochs': 2},
    )
    assert run(config, tmp_path / 'reference') == 0, output(tmp_path / 'reference')
    assert len(trace(tmp_path / 'reference', 'val')) == 2
    check_preempted(
        config,
        tmp_path / 'reference',
        tmp_path / 'run',
        dict(number=signal.SIGUSR1, at=at, stage=stage),
        BATCHES,
        'epoch_2.pth',
    )


@pytest.mark.parametrize('by_epoch', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_in_a_validation_and_after_it(pictures, tmp_path, by_epoch):
    """The validation that was killed is run again; the one that was complete is not."""
    loop = {'train_cfg.max_epochs': 2} if by_epoch else iter_based()
    if not by_epoch:
        loop['default_hooks.checkpoint'].update(interval=4)
    saved = BATCHES if by_epoch else 4
    config = write_config(pictures, tmp_path, **validation(pictures), **loop)
    assert run(config, tmp_path / 'reference') == 0, output(tmp_path / 'reference')
    for stage in ('val', 'train'):
        kill = dict(number=signal.SIGKILL, at=saved, stage=stage)
        assert run(config, tmp_path / 'run', kill) == -signal.SIGKILL, output(tmp_path / 'run')
        # The first is killed before its validation has given metrics, the second after it.
        assert len(trace(tmp_path / 'run', 'val')) == (stage == 'train')
    assert run(config, tmp_path / 'run') == 0, output(tmp_path / 'run')
    assert trace(tmp_path / 'run', 'start') == ['start 0', f'start {saved}', f'start {saved}']
    assert trace(tmp_path / 'run', 'val') == trace(tmp_path / 'reference', 'val')


@pytest.mark.parametrize('at', [3, pytest.param(1, marks=pytest.mark.slow)])
def test_preempted_in_an_iteration_based_loop(pictures, tmp_path, at):
    """At the step before a validation, and in between."""
    config = write_config(pictures, tmp_path, **validation(pictures), **iter_based())
    assert run(config, tmp_path / 'reference') == 0, output(tmp_path / 'reference')
    assert len(trace(tmp_path / 'reference', 'val')) == 3
    check_preempted(
        config,
        tmp_path / 'reference',
        tmp_path / 'run',
        dict(number=signal.SIGTERM, at=at),
        at + 1,
        'iter_10.pth',
    )


@pytest.mark.slow
@pytest.mark.parametrize('persistent', [False, True])
def test_processes_that_load_data(uninterrupted, pictures, tmp_path, persistent):
    """The whole process group gets the signal; the random draws are those without workers."""
    config = write_config(
        pictures,
        tmp_path,
        **{'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': persistent},
    )
    check_preempted(
        config,
        uninterrupted[1],
        tmp_path / 'run',
        dict(number=signal.SIGTERM, at=BATCHES + 1, group=True),
        BATCHES + 2,
        'epoch_3.pth',
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(_InfiniteDataloaderIterator, 'skip_iter'), reason='refused with mmengine < 0.10.8'
)
def test_processes_that_load_data_of_an_iteration_based_loop(pictures, tmp_path):
    (tmp_path / 'workers').mkdir()
    config = write_config(pictures, tmp_path, **iter_based())
    assert run(config, tmp_path / 'reference') == 0, output(tmp_path / 'reference')
    config = write_config(
        pictures, tmp_path / 'workers', **{**iter_based(), 'train_dataloader.num_workers': 2}
    )
    check_preempted(
        config,
        tmp_path / 'reference',
        tmp_path / 'run',
        dict(number=signal.SIGTERM, at=6, group=True),
        7,
        'iter_10.pth',
    )


@pytest.mark.slow
def test_epochs_resume_exactly_with_the_stock_seeds_of_workers(pictures, tmp_path):
    """Without seed_steps, MMEngine seeds new workers with the same numbers in every epoch."""
    config = write_config(
        pictures,
        tmp_path,
        seed_steps=False,
        **{'train_dataloader.num_workers': 2, 'model.backbone.drop_path_rate': 0.0},
    )
    assert run(config, tmp_path / 'reference') == 0
    kill = dict(number=signal.SIGKILL, at=BATCHES + 1)
    assert run(config, tmp_path / 'run', kill) == -signal.SIGKILL
    assert run(config, tmp_path / 'run') == 0
    assert trace(tmp_path / 'run', 'start') == ['start 0', f'start {BATCHES}']
    assert_same_weights(tmp_path / 'run' / 'epoch_3.pth', tmp_path / 'reference' / 'epoch_3.pth')


@pytest.mark.slow
def test_accumulated_gradients_are_used_before_the_run_stops(pictures, tmp_path):
    config = write_config(pictures, tmp_path, **{'optim_wrapper.accumulative_counts': 3})
    assert run(config, tmp_path / 'reference') == 0
    check_preempted(
        config,
        tmp_path / 'reference',
        tmp_path / 'run',
        dict(number=signal.SIGTERM, at=6),
        9,
        'epoch_3.pth',
    )


@pytest.mark.slow
def test_samples_without_seeds_in_the_config(pictures, tmp_path):
    """The sampler draws a seed, which the checkpoint keeps, so that no sample comes twice."""
    config = write_config(pictures, tmp_path, seed_steps=False, randomness=dict(seed=None))
    interrupt = dict(number=signal.SIGTERM, at=BATCHES + 2)
    assert run(config, tmp_path / 'run', interrupt) == REQUEUE_EXIT_CODE
    assert run(config, tmp_path / 'run') == 0
    steps = trace(tmp_path / 'run', 'step')
    assert [int(step.split()[1]) for step in steps] == list(range(3 * BATCHES))
    for epoch in range(3):
        seen = sorted(
            index
            for step in steps[epoch * BATCHES : (epoch + 1) * BATCHES]
            for index in json.loads(step.split(maxsplit=2)[2])
        )
        assert seen == sorted(2 * list(range(2 * BATCHES)))


def torchrun(config, work_dir, **more):
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        'tools/train.py',
        str(config),
        '--launcher',
        'pytorch',
        '--work-dir',
        str(work_dir),
        '--resume',
    ]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(
            os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1', PYTHONPATH=str(REPOSITORY)
        ),
        **more,
    )


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['train', 'val'])
def test_two_processes_of_which_one_gets_the_signal(pictures, tmp_path, stage):
    """Both stop at the same step, although only one of them gets the signal."""
    interrupt = dict(
        type='Interrupt',
        number=signal.SIGTERM.value,
        rank=1,
        stage=stage,
        at=1 if stage == 'train' else BATCHES // 2,
    )
    (tmp_path / 'stopped').mkdir()
    options = {**validation(pictures), 'train_cfg.max_epochs': 2}
    config = write_config(pictures, tmp_path, **options)
    stopped = write_config(pictures, tmp_path / 'stopped', hooks=[interrupt], **options)
    first = torchrun(stopped, tmp_path / 'run')
    log = first.communicate(timeout=240)[0]
    assert first.returncode == 1, log[-3000:]
    assert f'exitcode  : {REQUEUE_EXIT_CODE}' in log, log[-3000:]
    num_done = 2 if stage == 'train' else BATCHES // 2
    assert (tmp_path / 'run' / f'preempted_iter_{num_done}.pth').is_file()
    for rank in range(2):
        assert len(trace(tmp_path / 'run', 'step', name=f'trace{rank}')) == num_done
    second = torchrun(config, tmp_path / 'run')
    assert 'preempted' in (log := second.communicate(timeout=240)[0])
    assert second.returncode == 0, log[-3000:]
    whole = torchrun(config, tmp_path / 'reference')
    assert whole.wait(timeout=240) == 0
    for rank in range(2):
        kinds = ('step', 'val') if rank == 0 else ('step',)  # metrics are rank 0's
        found, expected = (
            trace(tmp_path / name, *kinds, name=f'trace{rank}') for name in ('run', 'reference')
        )
        assert found == expected
    assert_same_weights(tmp_path / 'run' / 'epoch_2.pth', tmp_path / 'reference' / 'epoch_2.pth')


# ---------------------------------------------------------------- the hooks alone


class Sources(torch.utils.data.Dataset):
    """Ten samples, of which every third is higher than wide."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(())

    def get_data_info(self, index):
        return dict(width=2 + index % 3, height=3)


def make_runner(epoch=0, iteration=0, loop_type=EpochBasedTrainLoop, num_workers=0, sampler=None):
    """A runner with batches of two of one shape, four an epoch and one of the rest."""
    sampler = sampler or DefaultSampler(Sources(), shuffle=True, seed=1)
    loader = DataLoader(
        sampler.dataset,
        collate_fn=list,
        num_workers=num_workers,
        batch_sampler=AspectRatioBatchSampler(sampler, batch_size=2),
    )
    loop = loop_type.__new__(loop_type)
    loop.dataloader, loop._epoch, loop._iter = loader, epoch, iteration
    if loop_type is not EpochBasedTrainLoop:
        loop.dataloader_iterator = None
    runner = SimpleNamespace(
        epoch=epoch,
        iter=iteration,
        seed=0,
        train_loop=loop,
        val_loop=None,
        logger=SimpleNamespace(info=print, warning=print),
    )
    return runner, loader


def resume(runner, seed_steps=False, **meta):
    hook = ResumeHook(seed_steps)
    hook.after_load_checkpoint(runner, dict(meta=meta))
    hook.before_train(runner)


def batches(loader):
    return [[sample[0] for sample in batch] for batch in loader]


@pytest.mark.parametrize('num_done', range(6))
def test_whole_batches_are_left_out_once(num_done):
    """Batches are grouped by shape: skipping samples would make other batches."""
    expected = batches(make_runner()[1])
    assert len(expected) == 5 and len(set(map(str, expected))) == 5
    runner, loader = make_runner(epoch=2, iteration=10 + num_done)
    resume(runner, num_batches=5)
    assert batches(loader) == expected[num_done:]
    assert batches(loader) == expected


def test_draws_depend_on_the_iteration_alone():
    runner, loader = make_runner()
    resume(runner, seed_steps=True)
    whole = []
    for runner.train_loop._iter, batch in enumerate(loader, 1):
        random.random(), np.random.rand(), torch.rand(3)
        whole.append(batch)
    resumed, loader = make_runner(iteration=2)
    resume(resumed, seed_steps=True, num_batches=5)
    first = next(iter(loader))
    assert first == whole[2] and first[0][1:] != whole[1][0][1:]


class Noise:
    """A transform with a generator of its own, inside another one."""

    def __init__(self):
        self.set_random_seed(None)

    def set_random_seed(self, seed):
        self.generator = np.random.default_rng(seed)


class NoisySources(Sources):
    def __init__(self):
        self.pipeline = [SimpleNamespace(transforms=[Noise()])]

    def __getitem__(self, index):
        return index, self.pipeline[0].transforms[0].generator.random()


@pytest.mark.parametrize('num_workers', [0, 2])
def test_generators_of_transforms_depend_on_the_iteration_too(num_workers):
    """With worker processes each has data sets of its own."""

    def sampler():
        return DefaultSampler(NoisySources(), shuffle=True, seed=1)

    runner, loader = make_runner(sampler=sampler())
    resume(runner, seed_steps=True)
    whole = []
    for runner.train_loop._iter, batch in enumerate(loader, 1):
        whole.append(batch)
    assert len({sample[1] for batch in whole for sample in batch}) == 10
    resumed, loader = make_runner(iteration=2, sampler=sampler(), num_workers=num_workers)
    resume(resumed, seed_steps=True, num_batches=5)
    found = []
    for resumed.train_loop._iter, batch in enumerate(loader, 3):
        found.append(batch)
    assert found == whole[2:]


def test_the_sampler_gets_the_seed_of_the_checkpoint():
    runner, loader = make_runner(iteration=5, epoch=1)
    resume(runner, num_batches=5, sampler_seed=7)
    sampler = DefaultSampler(Sources(), shuffle=True, seed=7)
    assert batches(loader) == batches(make_runner(sampler=sampler)[1])


SCHEDULERS = dict(
    OneCycleLR=dict(eta_max=1.0, total_steps=8),
    ReduceOnPlateauLR=dict(monitor='loss'),
    CosineAnnealingLR=dict(T_max=8),
    CosineRestartLR=dict(periods=[4, 4], restart_weights=[1, 1], eta_min=0),
    LinearLR=dict(end=4),
    MultiStepLR=dict(milestones=[2, 5]),
    PolyLR=dict(eta_min=0.1),
)


@pytest.mark.parametrize('by_optimizer', [False, True])
@pytest.mark.parametrize('name', SCHEDULERS)
def test_schedulers_go_on_from_a_checkpoint_without_code(name, by_optimizer, tmp_path):

    def build():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        config = dict(SCHEDULERS[name], type=name, optimizer=optimizer)
        return optimizer, PARAM_SCHEDULERS.build(config)

    def rates(optimizer, scheduler, count):
        found = []
        for _ in range(count):
            optimizer.step()
            scheduler.step(*([dict(loss=1.0)] if 'Plateau' in name else []))
            found.append(optimizer.param_groups[0]['lr'])
        return found

    optimizer, scheduler = build()
    rates(optimizer, scheduler, 3)
    states = [scheduler.state_dict()]
    checkpoint = dict(
        meta={},
        optimizer=optimizer.state_dict(),
        param_schedulers=dict(backbone=states) if by_optimizer else states,
    )
    ResumeHook().before_save_checkpoint(make_runner()[0], checkpoint)
    torch.save(checkpoint, tmp_path / 'a.pth')
    saved = load_weights_only(str(tmp_path / 'a.pth'))
    resumed, going_on = build()
    resumed.load_state_dict(saved['optimizer'])
    states = saved['param_schedulers']
    going_on.load_state_dict((states['backbone'] if by_optimizer else states)[0])
    assert rates(resumed, going_on, 4) == rates(optimizer, scheduler, 4)


@pytest.mark.parametrize('num_batches, iteration', [(4, 9), (5, 16)])
def test_a_checkpoint_of_another_number_of_batches_is_refused(num_batches, iteration):
    runner, _ = make_runner(epoch=2, iteration=iteration)
    with pytest.raises(ValueError, match='same data set, batch size') as error:
        resume(runner, num_batches=num_batches)
    assert f'iteration {iteration}, with {num_batches}' in str(error.value)


def test_the_start_of_an_epoch_fits_every_number_of_batches():
    runner, loader = make_runner(epoch=2, iteration=8)
    resume(runner, num_batches=4)
    assert len(batches(loader)) == 5


def test_workers_of_an_unknown_sampler_in_an_iteration_based_loop_are_refused():
    runner, _ = make_runner(loop_type=IterBasedTrainLoop, num_workers=2)
    with pytest.raises(ValueError, match='num_workers=2.*SequentialSampler'):
        resume(runner, seed_steps=True)


def test_batches_of_another_kind_are_refused():
    runner, _ = make_runner()
    runner.train_loop.dataloader = DataLoader(Sources(), batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(ValueError, match='BatchSampler.*list'):
        resume(runner, seed_steps=True)


def test_seeded_batches_go_to_workers_that_are_not_forked():
    runner, loader = make_runner()
    resume(runner, seed_steps=True)
    expected = next(iter(loader))
    state = torch.get_rng_state()
    data = pickle.loads(pickle.dumps(loader.dataset))
    runner, again = make_runner()
    resume(runner, seed_steps=True)
    batch = pickle.loads(pickle.dumps(next(iter(again.batch_sampler))))
    assert torch.equal(torch.get_rng_state(), state)  # only loading a batch seeds
    assert [data[index] for index in batch] == expected
    assert vars(loader.dataset) == {}


def test_a_second_training_of_a_runner_begins_with_the_first_batch():
    runner, loader = make_runner()
    for _ in range(2):
        resume(runner, seed_steps=True)
        assert batches(loader) == batches(make_runner()[1])


class LoadedAtOnce(Sources):
    """torch asks such a data set for a whole batch."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_data_sets_that_load_a_batch_at_once_are_seeded_too():
    found = []
    for dataset in (Sources(), LoadedAtOnce()):
        runner, loader = make_runner(sampler=DefaultSampler(dataset, shuffle=True, seed=1))
        resume(runner, seed_steps=True)
        found.append(next(iter(loader)))
    assert found[0] == found[1]


def test_signals_in_another_thread_are_not_promised():
    messages, hook, (runner, _) = [], PreemptionHook(), make_runner()
    runner.logger.warning = messages.append
    thread = threading.Thread(target=hook.before_train, args=(runner,))
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert 'main thread' in messages[0] and signal.getsignal(signal.SIGTERM) == before


def test_handlers_are_for_the_training_and_this_process_alone():
    hook, (runner, loader) = PreemptionHook(), make_runner()
    before = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    hook.before_train(runner)
    assert loader.worker_init_fn is not None
    child = multiprocessing.get_context('fork').Process(
        target=signal.raise_signal, args=(signal.SIGTERM,)
    )
    child.start()
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGTERM
    hook.restore()
    assert loader.worker_init_fn is None
    assert [signal.signal(*pair) for pair in zip(SIGNALS, before)] == 2 * [signal.SIG_DFL]


@pytest.mark.parametrize('stage', ['train', 'val'])
def test_a_signal_to_workers_that_have_hardly_begun_does_not_end_them(stage, monkeypatch):
    hook, (runner, loader) = PreemptionHook(), make_runner(num_workers=1)
    runner.optim_wrapper = SimpleNamespace(should_update=lambda: False)
    parent, expected = os.getpid(), batches(make_runner()[1])
    set_num_threads = torch.set_num_threads

    def begin(count):
        """What torch calls in a worker before its worker_init_fn."""
        set_num_threads(count)
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(torch, 'set_num_threads', begin)
    hook.before_train(runner)
    try:
        getattr(hook, f'before_{stage}_epoch')(runner)
        os.kill(parent, signal.SIGTERM)  # waits
        found = []
        for index, batch in enumerate(loader):
            getattr(hook, f'before_{stage}_iter')(runner, index)
            found.append([sample[0] for sample in batch])
        assert found == expected
        assert hook._signal == signal.SIGTERM
        assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        hook.restore()
