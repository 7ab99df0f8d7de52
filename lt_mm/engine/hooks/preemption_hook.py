"""Stopping a training run on request, so that it can be resumed later.

A scheduler that takes a machine away (SLURM's preemption and its ``--signal`` option, a
cloud's spot instances) sends a signal and leaves a little time.
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

from lt_mm.engine.checkpoints import (
    ATOMIC,
    check_strategy,
    nonfinite_weights,
    read_last_checkpoint,
    write_last_checkpoint,
)
from lt_mm.registry import HOOKS, register

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
# Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGUSR1', 'SIGTERM') if hasattr(signal, name))
_PREFIX = 'preempted_iter_'


@register(HOOKS)
class PreemptionHook(Hook):
    """Saves a checkpoint at SIGUSR1 or SIGTERM and exits with ``REQUEUE_EXIT_CODE``.

    All ranks stop before the same training step, once the optimizer has used the
    gradients accumulated so far, or at the same step of a validation, which is repeated
    when the run is resumed (:class:`ResumeHook` does this, and resumes in mid-epoch). A
    signal that comes after the last step changes nothing. The checkpoint is
    ``preempted_iter_<iterations done>.pth`` in the work directory; ``last_checkpoint``
    names it, and it is removed when a later checkpoint exists. Weights that are NaN or infinite are
    not saved.

    Until the training ends, the hook handles the two signals in this process (Windows has SIGTERM
    alone) and sets
    ``worker_init_fn`` of the runner's data loaders: worker processes leave the process
    group and take the signals from this process only. Launchers send signals to groups, and
    SLURM (proctrack/linuxproc) to all processes, and a run whose workers have ended cannot
    reach the point where it is saved. While the workers of an epoch or of a validation start,
    signals wait until its first batch is there.
    """

    priority = 'HIGHEST'  # it stops before anything of a step has happened

    def __init__(self) -> None:
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._init_fns: list[tuple[DataLoader, Any]] = []
        self._pid = os.getpid()
        self._group: torch_dist.ProcessGroup | None = None
        self._in_validation = False
        self._num_common_val_iters = 0
        self._has_saved = False
        self._stopped_at: dict[str, Any] = {}
        self._unblocked: set[Any] | None = None

    def before_train(self, runner: Any) -> None:
        check_strategy(runner)
        self.restore()  # what a training that failed has left
        self._stopped_at = {}
        if is_distributed():
            # The default group may be NCCL's, which waits for the GPU at each question.
            self._group = torch_dist.new_group(backend='gloo')
        loaders = [loop.dataloader for loop in (runner.train_loop, runner.val_loop) if loop]
        self._init_fns = [(loader, loader.worker_init_fn) for loader in loaders]
        for loader, init in self._init_fns:
            loader.worker_init_fn = functools.partial(_start_worker, init)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning(
                'PreemptionHook has no effect: only the main thread receives signals, and '
                'the training runs in another thread'
            )
            return
        self._pid = os.getpid()
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def before_train_epoch(self, runner: Any) -> None:
        self._block()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._unblock()
        if self._has_saved:
            self._has_saved = False
            _remove_superseded(runner.work_dir)
        if _is_between_updates(runner.optim_wrapper) and self._is_asked_to_stop():
            self._stop(runner)

    def before_val(self, runner: Any) -> None:
        if self._is_asked_to_stop():
            self._stop(runner, validation_due=True)
        # Ranks may have different numbers of batches to validate on.
        num_batches = len(runner.val_loop.dataloader)
        self._num_common_val_iters = -self._maximum(-num_batches)

    def before_val_epoch(self, runner: Any) -> None:
        self._in_validation = True
        self._block()

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self._unblock()

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        # MMPretrain's EMAHook may validate again after the end of the validation.
        if (
            self._in_validation
            and batch_idx < self._num_common_val_iters
            and self._is_asked_to_stop()
        ):
            _restore_trained_weights(runner)
            self._stop(runner, validation_due=True)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self._in_validation = False
        self._unblock()  # where there was nothing to validate on

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self._has_saved = True
        # A FlexibleRunner counts the epoch or the step as done, as at its end.
        checkpoint['meta'].update(self._stopped_at)

    def after_train(self, runner: Any) -> None:
        self.restore()
        if self._has_saved:
            _remove_superseded(runner.work_dir)

    def restore(self) -> None:
        """Restores the signal handlers and the loaders as they were before the training."""
        self._unblock()
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for loader, init in self._init_fns:
            loader.worker_init_fn = init
        self._handlers, self._init_fns = {}, []

    def _block(self) -> None:
        """Lets signals wait until the first batch is there.

        Workers are forked meanwhile. They inherit this, so that none dies of a signal that comes
        before :func:`_start_worker`.
        """
        if self._handlers and self._unblocked is None and hasattr(signal, 'pthread_sigmask'):
            self._unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def _unblock(self) -> None:
        if self._unblocked is not None:
            before, self._unblocked = self._unblocked, None
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _receive(self, number: int, frame: Any) -> None:
        if os.getpid() == self._pid:
            self._signal = number
        else:  # a forked process, which behaves as if there were no hook
            self.restore()
            os.kill(os.getpid(), number)

    def _is_asked_to_stop(self) -> bool:
        """Whether any rank received a signal. All ranks have to call this together."""
        number = self._maximum(self._signal)
        if number == 0:  # a signal that came meanwhile counts at the next call
            return False
        self._signal = number
        return True

    def _maximum(self, number: int) -> int:
        if self._group is None:
            return number
        value = torch.tensor([number])
        torch_dist.all_reduce(value, torch_dist.ReduceOp.MAX, group=self._group)
        return int(value)

    def _stop(self, runner: Any, validation_due: bool = False) -> None:
        name = f'{_PREFIX}{runner.iter}.pth'
        if nonfinite_weights(runner.model):  # the last checkpoint stays the one before
            name = 'nothing, because weights are NaN or infinite'
        else:
            self._stopped_at = dict(epoch=runner.epoch, iter=runner.iter)
            runner.save_checkpoint(
                runner.work_dir,
                name,
                backend_args=ATOMIC,
                meta=dict(self._stopped_at, validation_due=validation_due),
            )
            if is_main_process():
                write_last_checkpoint(runner.work_dir, Path(runner.work_dir, name))
                _remove_superseded(runner.work_dir)
        if self._group is not None:
            # Launchers kill the other ranks when one exits.
            torch_dist.barrier(group=self._group)
        runner.logger.warning(
            f'{signal.Signals(self._signal).name}: stopped after {runner.iter} '
            f'iterations and saved {name}; exits with code {REQUEUE_EXIT_CODE}. '
            'Resume with: tools/train.py ... --resume'
        )
        self.restore()
        raise SystemExit(REQUEUE_EXIT_CODE)


def _is_between_updates(optim_wrapper: Any) -> bool:
    """Whether there are no accumulated gradients, which a checkpoint does not hold."""
    values = getattr(optim_wrapper, 'values', None)
    return all(one.should_update() for one in (values() if values else [optim_wrapper]))


def _restore_trained_weights(runner: Any) -> None:
    """Puts back the weights that EMAHook replaced by averaged ones for the validation."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and getattr(hook, 'evaluate_on_ema', True):
            # MMEngine's method; the one that overrides it in MMPretrain validates again.
            EMAHook.after_val_epoch(hook, runner)


def _remove_superseded(work_dir: str) -> None:
    """Removes checkpoints of earlier interruptions, if there is a later checkpoint."""
    last = read_last_checkpoint(work_dir)
    if not is_main_process() or last is None or not os.path.isfile(last):
        return
    for path in Path(work_dir).glob(f'{_PREFIX}*.pth'):
        if path.name != Path(last).name:
            path.unlink()


def _start_worker(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Makes a worker survive the signals, which may go to all processes."""
    if hasattr(os, 'setsid'):  # not on Windows
        os.setsid()
    if hasattr(signal, 'sigwaitinfo'):  # nor on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_for_parent, args=(os.getppid(),), daemon=True).start()
    if init is not None:
        init(worker_id)


def _end_for_parent(parent: int) -> None:
    """Ends a worker at a signal from its parent, which is how torch ends workers."""
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)
