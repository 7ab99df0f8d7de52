"""Training runs in processes of their own that are interrupted at a chosen moment.

Processes are forked from a server that has imported everything once.
"""

import contextlib
import copy
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from lt_mm.apis import train as api
from lt_mm.engine.checkpoints import atomic_files
from lt_mm.engine.launch import load_config
from tests.training_data import classifier_config

# 12 sources, each twice, in batches of 4.
BATCHES = 6


@HOOKS.register_module()
class Trace(Hook):
    """Writes to a file what was trained on and validated, so that it outlives the process."""

    priority = 'VERY_LOW'

    def __init__(self, name='trace'):
        self.name = name

    def before_train(self, runner):
        self._write(runner, f'start {runner.iter}')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        ids = [sample.sample_idx for sample in data_batch['data_samples']]
        self._write(runner, f'step {runner.iter} {ids}')

    def after_val_epoch(self, runner, metrics=None):
        self._write(runner, f'val {runner.iter} {metrics}')

    def _write(self, runner, line):
        with open(f'{runner.work_dir}/{self.name}{runner.rank}.txt', 'a') as file:
            file.write(line + '\n')


@HOOKS.register_module()
class Interrupt(Hook):
    """Sends a signal at an iteration.

    To the process; with ``group`` to its group, and to those that load data, as SLURM's
    proctrack/linuxproc does.
    """

    def __init__(self, number, at, stage='train', group=False, rank=0):
        self.number, self.at, self.stage, self.group = number, at, stage, group
        self.rank = rank

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.stage == 'train' and runner.iter == self.at:
            self._send(runner)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.stage == 'val' and runner.iter == self.at and batch_idx == 0:
            self._send(runner)

    def _send(self, runner):
        if runner.rank != self.rank:
            return
        if self.group:
            os.killpg(0, self.number)
            workers = [str(child.pid) for child in multiprocessing.active_children()]
            subprocess.run(['kill', f'-{self.number:d}', *workers], check=True)
        else:
            os.kill(os.getpid(), self.number)


def write_config(pictures, folder, seed_steps=True, hooks=(), **more):
    """A tiny classifier with dropout, momentum, and random augmentations."""
    cfg = classifier_config(
        pictures,
        folder,
        **{
            'train_dataloader.batch_size': 4,
            'train_dataloader.sampler.num_repeats': 2,
            'train_cfg.max_epochs': 3,
            'model.backbone.drop_path_rate': 0.2,
            'default_hooks.checkpoint.max_keep_ckpts': 1,
            'custom_imports': dict(imports=['tests.engine.interrupted_runs']),
            'custom_hooks': [
                dict(type='Trace'),
                *hooks,
                dict(type='lt_mm.ResumeHook', seed_steps=seed_steps),
            ],
            **copy.deepcopy(more),  # merging takes _delete_ out of them
        },
    )
    path = folder / 'config.py'
    cfg.dump(str(path))
    return path


def validation(pictures):
    """Settings of a validation of 3 batches after each epoch."""
    return {
        'val_dataloader': dict(
            _delete_=True,
            batch_size=4,
            num_workers=0,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CustomDataset',
                data_root=str(pictures),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
            ),
        ),
        'val_cfg': dict(),
        'val_evaluator': dict(type='Accuracy', topk=(1,)),
    }


def run(config, work_dir, interrupt=None, write_event=None, options=None, kill_after=None):
    """Trains in a process of its own, resuming from what is in ``work_dir``.

    Args:
        interrupt: Arguments of ``Interrupt``.
        write_event: Number of the moment, among those of all files written atomically,
            at which the process is killed: 3 a file (half of the bytes are written;
            all are and the name is not; the name is, and the folder is not synced).
        kill_after: Seconds after which the process is killed, wherever it is.

    Returns:
        The exit code; negative numbers are signals.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    process = context.Process(
        target=_train, args=(str(config), str(work_dir), interrupt, write_event, options)
    )
    process.start()
    process.join(timeout=kill_after or 120)
    if kill_after is not None and process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode is None:
        process.kill()
        raise AssertionError('the run hangs:\n' + output(work_dir))
    return process.exitcode


def output(work_dir):
    return Path(work_dir, 'output.txt').read_text()[-3000:]


def trace(work_dir, *kinds, name='trace0'):
    lines = Path(work_dir, f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line.split()[0] in kinds]


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def assert_same_weights(path, other):
    found, expected = weights(path), weights(other)
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def _train(config, work_dir, interrupt, write_event, options):
    os.makedirs(work_dir, exist_ok=True)
    gc.freeze()  # as in conftest.py
    torch.set_num_threads(1)
    os.setpgrp()
    options = dict(options or {})
    if write_event is not None:
        _kill_at_write_event(write_event)
    with (
        open(f'{work_dir}/output.txt', 'a') as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        if interrupt is not None:
            hooks = load_config(config).custom_hooks
            options['custom_hooks'] = [*hooks, dict(type='Interrupt', **interrupt)]
        try:
            api.train(config, work_dir=work_dir, resume='auto', cfg_options=options)
        except Exception:  # the traceback belongs in the file; the exit code says the rest
            import traceback

            traceback.print_exc()
            sys.exit(1)


def _kill_at_write_event(number):
    """Kills this process in the middle of writing a file."""
    left = [number]

    def is_due():
        left[0] -= 1
        return left[0] < 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class HalfWritten:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            if is_due():
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                die()
            self.file.write(content)

    def replace(*paths):
        if is_due():
            die()
        os_replace(*paths)

    def sync_folder(folder):
        if is_due():
            die()

    os_replace = os.replace
    atomic_files.open = lambda *args: HalfWritten(open(*args))  # noqa: SIM115 (the caller closes it)
    atomic_files.os.replace = replace
    atomic_files._sync_folder = sync_folder
