"""The joint loss of a batch, one micro-batch in memory at a time.

The replicas of a source meet in the loss, so the memory of a step grows with their
number m. Here a batch is run in m micro-batches, twice: the first time without a graph,
to learn what pairs; the second time, with the same random draws, each micro-batch
computes the term of the *joint* batch, in which its own predictions have a graph and
those of the others are the values of the first time, and is back-propagated. The sum of
the gradients is that of the joint loss, through the mean predictions as well (GradCache,
arXiv:2101.06983, for a loss over groups). The price is the second forward pass.
"""

import contextlib
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads import DETRHead, DINOHead, FCOSHead, RetinaHead, RPNHead
from mmdet.models.roi_heads import CascadeRoIHead, DynamicRoIHead, StandardRoIHead
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from lt_mm.models.heads import ConsistencyMixin
from lt_mm.models.heads.gathering import GatheredBatch, Part, join_parts
from lt_mm.registry import LOOPS, register
from lt_mm.structures.errors import UnsupportedHeadError

# Heads whose stock losses are means with a divisor that the loss module is told, or
# means over its rows. Others divide by themselves (ATSS, GFL, YOLOX, SSD), pad their
# queries to the batch (DINO), or change what they do at each pass (Dynamic R-CNN).
_SUPPORTED = (
    ClsHead,
    MultiLabelClsHead,
    StandardRoIHead,
    CascadeRoIHead,
    RPNHead,
    RetinaHead,
    FCOSHead,
    DETRHead,
)
_REFUSED = (DINOHead, DynamicRoIHead)


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
        UnsupportedHeadError: At the first step, if the losses of a head of the model
            cannot be divided as those of the joint batch.
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
    heads = _wrapped_heads(module, optim_wrapper)
    with optim_wrapper.optim_context(model):
        data = module.data_preprocessor(data_batch, training=True)
    parts = _split(data, num_micro_batches)
    gathered, divisors = _GatheredMicroBatches(), _Divisors(module)
    for head in heads:
        head.lt_gatherer = gathered.gather
    try:
        states = _first_pass(model, module, parts, optim_wrapper, gathered, divisors)
        losses = []
        for number, (part, state) in enumerate(zip(parts, states)):
            gathered.begin(number)
            divisors.begin(number)
            _restore_random_states(state)
            losses.append(
                _back_propagate(
                    model, module, part, optim_wrapper, is_last=number == len(parts) - 1
                )
            )
    finally:
        divisors.remove()
        for head in heads:
            del head.lt_gatherer
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return module.parse_losses(_of_joint_batch(losses))[1]


def _wrapped_heads(module: nn.Module, optim_wrapper: OptimWrapper) -> list[ConsistencyMixin]:
    """The heads with a term; refuses what would not give the joint gradient."""
    if getattr(optim_wrapper, '_accumulative_counts', 1) != 1:
        raise ValueError(
            f'optim_wrapper accumulates {optim_wrapper._accumulative_counts} steps below '
            'a loop with micro-batches; expected optim_wrapper.accumulative_counts=1. '
            'Take more micro-batches instead, train_cfg.num_micro_batches'
        )
    for name in ('head', 'bbox_head', 'rpn_head', 'roi_head', 'mask_head'):
        head = getattr(module, name, None)
        if head is not None and (not isinstance(head, _SUPPORTED) or isinstance(head, _REFUSED)):
            raise UnsupportedHeadError(
                f'{name} is a {type(head).__name__}, whose losses are not means that can '
                'be put together from micro-batches; expected a classification head, a '
                'StandardRoIHead or CascadeRoIHead, RPNHead, RetinaHead, FCOSHead or '
                'DETRHead. Train it with the stock loop: train_cfg=dict(_delete_=True, '
                "type='EpochBasedTrainLoop', ...)"
            )
    heads = [part for part in module.modules() if isinstance(part, ConsistencyMixin)]
    if any(head.lt_options.across_ranks for head in heads):
        raise ValueError(
            "across_ranks=True below a loop with micro-batches; expected placement='rank' "
            'in the sampler and across_ranks=False in the LossTransformHead'
        )
    return heads


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
    gathered: '_GatheredMicroBatches',
    divisors: '_Divisors',
) -> list[tuple]:
    """Records what pairs and what the losses are divided by; changes no buffer.

    Returns:
        For each micro-batch the states of the random generators before it.
    """
    states, buffers = [], [buffer.clone() for buffer in module.buffers()]
    for number, part in enumerate(parts):
        gathered.begin(number)
        divisors.begin(number)
        states.append(_random_states())
        with torch.no_grad(), optim_wrapper.optim_context(model):
            model(**part, mode='loss')
    for buffer, before in zip(module.buffers(), buffers):
        buffer.copy_(before)
    gathered.is_complete = divisors.is_complete = True
    return states


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

    return {
        key: joined(key, tuple(part[key] for part in losses if key in part)) for key in losses[0]
    }


class _GatheredMicroBatches:
    """The candidates of all micro-batches of a step; the first pass records them.

    Attributes:
        is_complete: Whether all micro-batches were seen.
    """

    def __init__(self) -> None:
        self.is_complete = False
        self._recorded: list[list[Part]] = []

    def begin(self, number: int) -> None:
        """Starts a pass over a micro-batch."""
        self.number, self._calls = number, 0
        if not self.is_complete:
            self._recorded.append([])

    def gather(self, part: Part) -> GatheredBatch:
        """The batch of all micro-batches, with the graph of the present one only.

        In the first pass that of the present one alone.

        Raises:
            RuntimeError: If the micro-batch does not give in the second pass what it gave
                in the first one.
        """
        if not self.is_complete:
            columns = {name: column.detach() for name, column in part.columns.items()}
            self._recorded[self.number].append(replace(part, columns=columns))
            return replace(join_parts([part], 0), is_complete=False)
        own = self._recorded[self.number]
        if self._calls >= len(own) or _shapes(own[self._calls]) != _shapes(part):
            raise RuntimeError(
                'a micro-batch gives other predictions in the second pass than in the '
                'first: something in the model draws random numbers that are not from '
                'random, numpy or torch, or keeps a state that is not a buffer; use the '
                "stock loop, train_cfg=dict(type='EpochBasedTrainLoop', ...)"
            )
        parts = [recorded[self._calls] for recorded in self._recorded]
        parts[self.number] = part
        self._calls += 1
        return replace(join_parts(parts, self.number), num_shares=len(parts))


def _shapes(part: Part) -> dict[str, torch.Size]:
    return {name: column.shape for name, column in part.columns.items()}


class _Divisors:
    """Makes the stock loss of a micro-batch its part of the loss of the joint batch.

    A loss module is told its divisor, ``avg_factor``, or takes the mean over its rows.
    The first pass records these numbers; in the second one the divisor is their sum. (A
    stock divisor that is at least 1 is so for each micro-batch: the sum of the parts
    differs from the joint loss where one has no positive.)
    """

    def __init__(self, module: nn.Module) -> None:
        self.is_complete = False
        self._recorded: list[dict[tuple[nn.Module, int], float]] = []
        losses = [
            part
            for name, part in module.named_modules()
            if name.rpartition('.')[2].startswith('loss')
        ]
        self._handles = [
            handle
            for loss in losses
            for handle in (
                loss.register_forward_pre_hook(self._before, with_kwargs=True),
                loss.register_forward_hook(self._after),
            )
        ]

    def begin(self, number: int) -> None:
        """Starts a pass over a micro-batch."""
        self._number = number
        self._calls: Counter[nn.Module] = Counter()
        if not self.is_complete:
            self._recorded.append({})

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, loss: nn.Module, args: tuple, kwargs: dict) -> Any:
        call = (loss, self._calls[loss])
        self._calls[loss] += 1
        told = kwargs.get('avg_factor')
        divisor = float(len(args[0]) if told is None else told)
        self._share = None
        if not self.is_complete:
            self._recorded[self._number][call] = divisor
            return None
        joint = sum(recorded.get(call, 0.0) for recorded in self._recorded)
        if told is None:
            self._share = divisor / joint
            return None
        return args, {**kwargs, 'avg_factor': joint}

    def _after(self, loss: nn.Module, args: tuple, output: Tensor) -> Any:
        return None if self._share is None else output * self._share


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
