"""The joint loss of a batch, one micro-batch in memory at a time.

The replicas of a source meet in the loss, so the memory of a step grows with their
number m. Here a batch is run in m micro-batches, twice. The first time, without a graph,
only the predictions are kept; the heads compute the losses of the *joint* batch from them,
the stock ones and the term, and their gradient with respect to each prediction. The second
time, with the same random draws, each micro-batch is back-propagated from its predictions.
The sum of the gradients is that of the joint loss (GradCache, arXiv:2101.06983). The price is
the second forward pass.
"""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor, nn

from lt_mm.engine.loops.joint_losses import JointLosses
from lt_mm.models.heads import ConsistencyMixin
from lt_mm.registry import LOOPS, register


class _MicroBatchLoop:
    """What the two loops share."""

    runner: Any
    _iter: int

    def __init__(self, *args: Any, num_micro_batches: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_micro_batches = num_micro_batches

    def _step(self, batch_idx: int, data_batch: Any) -> None:
        """What the stock ``run_iter`` does, with the step of this module."""
        self.runner.call_hook('before_train_iter', batch_idx=batch_idx, data_batch=data_batch)
        outputs = joint_step(
            self.runner.model, data_batch, self.runner.optim_wrapper, self.num_micro_batches
        )
        self.runner.call_hook(
            'after_train_iter', batch_idx=batch_idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1


@register(LOOPS)
class MicroBatchTrainLoop(_MicroBatchLoop, EpochBasedTrainLoop):
    """The stock epoch-based loop with steps whose memory does not grow with m.

    ``train_cfg = dict(_delete_=True, type='lt_mm.MicroBatchTrainLoop', max_epochs=12,
    num_micro_batches=2)`` in the place of the stock ``train_cfg``.

    Args:
        num_micro_batches: Parts of a batch; micro-batch k holds samples k, k +
            num_micro_batches... With the sampler's ``num_repeats``: one replica of
            every source.
        *args, **kwargs: Those of the stock loop.

    Raises:
        UnsupportedHeadError: At the first step, if a loss of the model is not made by a head
            in a way that is known (:mod:`lt_mm.engine.loops.joint_losses`).
        ValueError: If the optim wrapper accumulates gradients as well.
    """

    def run_iter(self, idx: int, data_batch: Any) -> None:
        self._step(idx, data_batch)


@register(LOOPS)
class MicroBatchIterTrainLoop(_MicroBatchLoop, IterBasedTrainLoop):
    """:class:`MicroBatchTrainLoop` on the stock iteration-based loop."""

    def run_iter(self, data_batch: Any) -> None:
        self._step(self._iter, data_batch)


def joint_step(
    model: nn.Module, data_batch: Any, optim_wrapper: OptimWrapper, num_micro_batches: int
) -> dict[str, Tensor]:
    """One training step on a batch, in micro-batches.

    Batch norm in training mode takes its statistics from each micro-batch by itself,
    which is the one difference to the step on the joint batch.

    Args:
        model: A stock model, or MMEngine's distributed wrapper of one.
        data_batch: As the data loader gives it.
        optim_wrapper: Makes one update.
        num_micro_batches: Parts of the batch.

    Returns:
        What the stock ``train_step`` returns, for the joint batch.
    """
    module: Any = model.module if is_model_wrapper(model) else model
    _check(module, optim_wrapper)
    with optim_wrapper.optim_context(model):
        data = module.data_preprocessor(data_batch, training=True)
    parts = _split(data, num_micro_batches)
    losses = []
    with JointLosses(module) as joint:
        states = _first_pass(model, module, parts, optim_wrapper, joint)
        for number, (part, state) in enumerate(zip(parts, states)):
            joint.begin(number)
            _restore_random_states(state)
            is_last = number == len(parts) - 1
            losses.append(_back_propagate(model, module, part, optim_wrapper, is_last))
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return module.parse_losses(_of_joint_batch(losses))[1]


def _check(module: nn.Module, optim_wrapper: OptimWrapper) -> None:
    """Refuses options that do not give the joint gradient."""
    if getattr(optim_wrapper, '_accumulative_counts', 1) != 1:
        raise ValueError(
            f'optim_wrapper accumulates {optim_wrapper._accumulative_counts} steps below '
            'a loop with micro-batches; expected optim_wrapper.accumulative_counts=1. '
            'Take more micro-batches instead, train_cfg.num_micro_batches'
        )
    heads = [part for part in module.modules() if isinstance(part, ConsistencyMixin)]
    if get_world_size() > 1 and any(head.lt_memory is not None for head in heads):
        raise ValueError(
            'memory=dict(...) on several ranks below a loop with micro-batches; expected '
            "one process, or the stock loop: train_cfg=dict(type='EpochBasedTrainLoop', ...)"
        )
    if any(head.lt_options.across_ranks for head in heads):
        raise ValueError(
            "across_ranks=True below a loop with micro-batches; expected placement='rank' "
            'in the sampler and across_ranks=False in the LossTransformHead'
        )
    # The joint losses are computed outside the passes in which a teacher predicts.
    targets = [head.lt_options.weak_target for head in heads]
    if any(target is not None and target.teacher for target in targets):
        raise ValueError(
            'weak_target=dict(teacher=True) below a loop with micro-batches; expected '
            "teacher=False, or the stock loop: train_cfg=dict(type='EpochBasedTrainLoop', ...)"
        )


def _split(data: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Micro-batch k of a batch: samples k, k + count, ..."""
    parts = [
        dict(inputs=data['inputs'][first::count], data_samples=data['data_samples'][first::count])
        for first in range(count)
    ]
    return [part for part in parts if len(part['data_samples'])]


def _first_pass(
    model: Any,
    module: Any,
    parts: list[dict[str, Any]],
    optim_wrapper: OptimWrapper,
    joint: JointLosses,
) -> list[tuple]:
    """Predicts without a graph, then computes the joint losses; the passes change no buffer.

    Returns:
        For each micro-batch the states of the random generators before it.
    """
    states, buffers = [], [buffer.clone() for buffer in module.buffers()]
    for number, part in enumerate(parts):
        joint.begin(number)
        states.append(_random_states())
        with torch.no_grad(), optim_wrapper.optim_context(model):
            joint.check_first_pass(model(**part, mode='loss'))
    for buffer, before in zip(module.buffers(), buffers):
        buffer.copy_(before)
    with optim_wrapper.optim_context(model):
        # A model that is being recorded records what its heads do outside its forward pass.
        getattr(module, 'lt_record', _call)(joint.compute)
    return states


def _call(function: Callable[[], None]) -> None:
    function()


def _back_propagate(
    model: Any, module: Any, part: dict[str, Any], optim_wrapper: OptimWrapper, is_last: bool
) -> dict[str, Any]:
    """Back-propagates a micro-batch; returns its losses without graph."""
    apart = hasattr(model, 'no_sync') and not is_last  # ranks add up once, at the end
    with model.no_sync() if apart else contextlib.nullcontext():
        with optim_wrapper.optim_context(model):
            losses = model(**part, mode='loss')
        optim_wrapper.backward(module.parse_losses(losses)[0])
    return {
        key: [value.detach() for value in values]
        if isinstance(values, (list, tuple))
        else values.detach()
        for key, values in losses.items()
    }


def _of_joint_batch(losses: list[dict[str, Any]]) -> dict[str, Any]:
    """The loss dict of the joint batch from those of the micro-batches.

    Losses, which MMEngine sums, are shares of a sum; what is only logged is averaged.
    """

    def joined(key: str, values: tuple) -> Any:
        if isinstance(values[0], list):
            return [joined(key, level) for level in zip(*values)]
        stacked = torch.stack(values)
        return stacked.sum(dim=0) if 'loss' in key else stacked.float().mean(dim=0)

    keys = dict.fromkeys(key for part in losses for key in part)
    return {key: joined(key, tuple(part[key] for part in losses if key in part)) for key in keys}


def _random_states() -> tuple:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore_random_states(states: tuple) -> None:
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
