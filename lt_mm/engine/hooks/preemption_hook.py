"""Stopping a training run that is asked to stop, so that it can go on later.

A scheduler that takes a machine away (SLURM's preemption and its ``--signal`` option,
a cloud's spot instances) sends a signal and leaves a little time.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from torch.utils.data import DataLoader

from lt_mm.engine.checkpoints import ATOMIC, read_last_checkpoint, write_last_checkpoint
from lt_mm.registry import HOOKS, register

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_PREFIX = 'preempted_iter_'


@register(HOOKS)
class PreemptionHook(Hook):
    """At SIGUSR1 or SIGTERM: saves a checkpoint and ends with ``REQUEUE_EXIT_CODE``.

    All ranks stop before the same training step, when the optimizer has used the
    gradients accumulated so far, or at the same step of a validation, which is run
    again when the run is resumed (:class:`ResumeHook` is needed for this, and for
    going on in mid-epoch). A signal that comes after the last step changes nothing.
    The file is ``preempted_iter_<iterations done>.pth`` in the work directory,
    ``last_checkpoint`` names it, and it is removed when a later checkpoint exists.

    The processes that load data take these signals from this process only, and leave its
    group: launchers signal groups, and SLURM (proctrack/linuxproc) all processes, and
    the run could not save without those that load.
    """

    priority = 'HIGHEST'  # nothing of the step at which it stops has happened yet

    def __init__(self) -> None:
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._pid = os.getpid()
        self._group: torch_dist.ProcessGroup | None = None
        self._in_validation = False
        self._num_common_val_iters = 0
        self._has_saved = False

    def before_train(self, runner) -> None:
        if is_distributed():
            # The default group may be NCCL's: to ask it would wait for the card.
            self._group = torch_dist.new_group(backend='gloo')
        loops = (runner.train_loop, runner.val_loop)
        for loop in filter(None, loops):
            _detach_workers(loop.dataloader)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning(
                'PreemptionHook does nothing: signals reach the main thread only, and '
                'the training runs in another one'
            )
            return
        self._pid = os.getpid()
        self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self._has_saved:
            self._has_saved = False
            _remove_superseded(runner.work_dir)
        if _is_between_updates(runner.optim_wrapper) and self._is_asked_to_stop():
            self._stop(runner)

    def before_val(self, runner) -> None:
        if self._is_asked_to_stop():
            self._stop(runner, validation_due=True)
        # Ranks may have different numbers of batches to validate on.
        num_batches = len(runner.val_loop.dataloader)
        self._num_common_val_iters = -self._maximum(-num_batches)

    def before_val_epoch(self, runner) -> None:
        self._in_validation = True

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        # EMAHook of MMPretrain validates again, after the end of the validation.
        if (
            self._in_validation
            and batch_idx < self._num_common_val_iters
            and self._is_asked_to_stop()
        ):
            _take_back_averaged_weights(runner)
            self._stop(runner, validation_due=True)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._in_validation = False

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._has_saved = True

    def after_train(self, runner) -> None:
        self.restore_handlers()
        if self._has_saved:
            _remove_superseded(runner.work_dir)

    def restore_handlers(self) -> None:
        """Gives the signals back to who handled them before the training."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._handlers = {}

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() == self._pid:
            self._signal = number
        else:  # a forked process: as if this hook were not there
            self.restore_handlers()
            os.kill(os.getpid(), number)

    def _is_asked_to_stop(self) -> bool:
        """The same on all ranks, who have to ask together."""
        number = self._maximum(self._signal)
        if number == 0:  # and a signal that came meanwhile is for the next time
            return False
        self._signal = number
        return True

    def _maximum(self, number: int) -> int:
        if self._group is None:
            return number
        value = torch.tensor([number])
        torch_dist.all_reduce(value, torch_dist.ReduceOp.MAX, group=self._group)
        return int(value)

    def _stop(self, runner, validation_due: bool = False) -> None:
        name = f'{_PREFIX}{runner.iter}.pth'
        runner.save_checkpoint(
            runner.work_dir,
            name,
            backend_args=ATOMIC,
            meta=dict(epoch=runner.epoch, iter=runner.iter, validation_due=validation_due),
        )
        if is_main_process():
            write_last_checkpoint(runner.work_dir, Path(runner.work_dir, name))
            _remove_superseded(runner.work_dir)
        if self._group is not None:
            # Launchers kill the others when one rank ends.
            torch_dist.barrier(group=self._group)
        runner.logger.warning(
            f'{signal.Signals(self._signal).name}: stopped after {runner.iter} '
            f'iterations and saved {name}; ends with exit code {REQUEUE_EXIT_CODE}. '
            'Go on with: tools/train.py ... --resume'
        )
        self.restore_handlers()
        raise SystemExit(REQUEUE_EXIT_CODE)


def _is_between_updates(optim_wrapper: Any) -> bool:
    """Whether no gradients are accumulated, which a checkpoint does not hold."""
    values = getattr(optim_wrapper, 'values', None)
    return all(one.should_update() for one in (values() if values else [optim_wrapper]))


def _take_back_averaged_weights(runner) -> None:
    """Undoes what EMAHook did for the time of the validation: it swapped the weights.

    Its own ``after_val_epoch`` does this, and in MMPretrain validates once more.
    """
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and getattr(hook, 'evaluate_on_ema', True):
            hook._swap_ema_parameters()


def _remove_superseded(work_dir: str) -> None:
    """Removes checkpoints of earlier interruptions, if there is a later checkpoint."""
    last = read_last_checkpoint(work_dir)
    if not is_main_process() or last is None or not Path(last).is_file():
        return
    for path in Path(work_dir).glob(f'{_PREFIX}*.pth'):
        if path.name != Path(last).name:
            path.unlink()


def _detach_workers(dataloader: DataLoader) -> None:
    """Makes a loader's processes outlive the signals, which may go to all processes."""
    dataloader.worker_init_fn = functools.partial(_start_worker, dataloader.worker_init_fn)


def _start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    os.setsid()
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_for_parent, args=(os.getppid(),), daemon=True).start()
    if init is not None:
        init(worker_id)


def _end_for_parent(parent: int) -> None:
    """Answers to the signals in a worker: torch ends it by one, from its parent."""
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)
