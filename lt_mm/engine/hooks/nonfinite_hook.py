"""The hook that stops a training that has become NaN."""

import logging
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.logging import print_log
from torch import Tensor

from lt_mm.engine.checkpoints import nonfinite_weights, read_last_checkpoint
from lt_mm.registry import HOOKS, register

_NEVER = -1
_NUM_NAMED = 3


@register(HOOKS)
class NonFiniteHook(Hook):
    """Stops a training in which a loss, or a weight, is NaN or infinite.

    ``custom_hooks = [dict(type='lt_mm.NonFiniteHook')]``; tools/train.py adds it. The error names
    the first such step, the losses that were not finite in it, and the last checkpoint. Every
    step is watched, and the device is asked at the interval of the ``LoggerHook``, at the end of an
    epoch, and before a checkpoint is saved: no checkpoint with such weights is saved. All ranks
    stop together.

    Gradients are not looked at. Below a loss scaler (``AmpOptimWrapper``), which leaves out the
    steps whose gradients are not finite, a loss that was not finite in single steps is a warning.

    Args:
        stop: Whether to stop. Otherwise a warning is logged, and the training goes on. The
            :class:`AtomicCheckpointHook` then still saves no weights that are not finite; the
            stock ``CheckpointHook`` does.
    """

    priority = 'LOW'  # after the log, before the checkpoint

    def __init__(self, stop: bool = True) -> None:
        self.stop = stop
        self._watch, self._interval, self._has_warned = LossWatch(), 50, False

    def before_train(self, runner: Any) -> None:
        intervals = [each.interval for each in runner.hooks if isinstance(each, LoggerHook)]
        self._interval = min(intervals, default=50)
        self._watch, self._has_warned = LossWatch(), False

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._watch.add(outputs or {}, runner.iter + 1)
        if self.every_n_train_iters(runner, self._interval) or self._is_saved_next(runner):
            self._look(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Any) -> None:
        self._look(runner, runner.iter)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        # On the main process alone. Not reached with weights that an earlier look has seen.
        names = nonfinite_weights(runner.model) if self.stop else []
        if names:
            raise FloatingPointError(_message(runner, f'{_listed(names)} not finite'))

    def _is_saved_next(self, runner: Any) -> bool:
        """Whether a checkpoint is saved after this iteration."""
        return any(
            not hook.by_epoch
            and (self.every_n_train_iters(runner, hook.interval) or self.is_last_train_iter(runner))
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook)
        )

    def _look(self, runner: Any, step: int) -> None:
        """Asks the devices of all ranks; all ranks have to call this together."""
        # Of all ranks, the first step; there, a loss rather than the weights that it spoiled.
        faults = [each for each in all_gather_object(self._fault(runner, step)) if each]
        fault = min(faults)[-1] if faults else None
        self._watch.clear()
        if fault is not None and self.stop:
            raise FloatingPointError(_message(runner, fault))
        if fault is not None and not self._has_warned:
            print_log(_message(runner, fault), 'current', logging.WARNING)
        self._has_warned = fault is not None

    def _fault(self, runner: Any, step: int) -> tuple[int, bool, str] | None:
        """The step, whether only weights tell it, and what to say."""
        found, names = self._watch.first(), nonfinite_weights(runner.model)
        if found is None:
            if not names:
                return None
            fault = f'{_listed(names)} not finite after step {step}, although all losses were'
            return step, True, fault
        fault = f'{_listed(found[1])} not finite at step {found[0]}'
        if names or not _scales_losses(runner.optim_wrapper) or self._watch.is_bad_now():
            return found[0], False, fault
        print_log(f'{fault}; the loss scaler has left it out', 'current', logging.WARNING)
        return None


class LossWatch:
    """The first steps at which losses were not finite, kept on the device of the losses."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, ...], Tensor] = {}
        self._is_bad: Tensor | None = None

    def add(self, outputs: dict[str, Any], step: int) -> None:
        """Notes the losses of a step, without waiting for the device.

        Args:
            outputs: What ``train_step`` returned; those with ``loss`` in their name are losses.
            step: Its number.
        """
        losses = {
            key: torch.as_tensor(value).detach().mean()
            for key, value in outputs.items()
            if 'loss' in key and (isinstance(value, (Tensor, float)))
        }
        if not losses:
            return
        names, device = tuple(losses), next(iter(losses.values())).device
        bad = ~torch.stack([loss.to(device).isfinite() for loss in losses.values()])
        first = self._first.get(names)
        if first is None:
            first = torch.full_like(bad, _NEVER, dtype=torch.int64)
        self._first[names] = torch.where(bad & (first == _NEVER), step, first)
        self._is_bad = bad.any()

    def first(self) -> tuple[int, list[str]] | None:
        """The first step with a loss that was not finite, and the names of its losses."""
        found: dict[int, list[str]] = {}
        for names, steps in self._first.items():
            for name, step in zip(names, steps.tolist()):
                found.setdefault(step, []).append(name)
        found.pop(_NEVER, None)
        if not found:
            return None
        step = min(found)
        # 'loss' is the sum of the others, where there are others.
        return step, [name for name in found[step] if name != 'loss'] or ['loss']

    def is_bad_now(self) -> bool:
        """Whether a loss was not finite in the latest step."""
        return self._is_bad is not None and bool(self._is_bad)

    def clear(self) -> None:
        """Forgets what was seen."""
        self._first, self._is_bad = {}, None


def _scales_losses(optim_wrapper: Any) -> bool:
    values = getattr(optim_wrapper, 'values', None)
    return any(hasattr(each, 'loss_scaler') for each in (values() if values else [optim_wrapper]))


def _listed(names: list[str]) -> str:
    more = f' and {len(names) - _NUM_NAMED} more' if len(names) > _NUM_NAMED else ''
    verb = 'is' if len(names) == 1 else 'are'
    return f'{", ".join(names[:_NUM_NAMED])}{more} {verb}'


def _message(runner: Any, fault: str) -> str:
    last = read_last_checkpoint(runner.work_dir)
    saved = last or 'none, since nothing was saved before'
    return (
        f'the training has become NaN or infinite: {fault}. The last checkpoint with finite '
        f'weights is {saved}. Before it is resumed (--resume), lower the learning rate, or clip '
        'the gradients: optim_wrapper.clip_grad=dict(max_norm=35, norm_type=2). To go on in '
        'spite of this: '
        "custom_hooks=[dict(type='lt_mm.NonFiniteHook', stop=False)]"
    )
