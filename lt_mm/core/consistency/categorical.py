"""The term of softmax classifiers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lt_mm.core.consistency.common import (
    LOWEST_LOG,
    average,
    check_predictions,
    floored,
    known_targets,
    zero_unpaired,
)
from lt_mm.core.pairing import PairedGroups, paired_groups

# Entries in a block of rows: as many as fit into a processor's cache, or keep a GPU busy.
_CPU_BLOCK, _DEVICE_BLOCK = 2**18, 2**20


def categorical_consistency(
    logits: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Term for softmax classifiers.

    Args:
        logits: (N, C), unnormalised; receives gradient.
        group_ids: (N,) integer, equal for positives of each other, negative for
            predictions without one.
        temperature: Divides the logits before the softmax.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
        target: (N, C), if given, the mean that each prediction is compared with in place of that
            of its group; a row of NaN compares with nothing. It counts as constant. Its
            probabilities are those of the same temperature.

    Raises:
        NotImplementedError: In the backward pass, if the gradient is to have a gradient, unless
            there is a target.
    """
    check_predictions(logits, group_ids, avg_factor, temperature)
    if target is not None:
        known = known_targets(target, logits, group_ids).all(dim=1)
        with torch.autocast(logits.device.type, enabled=False):
            scaled = zero_unpaired(known, logits) / temperature
            log_p = floored(scaled.log_softmax(dim=1))
            mean = torch.where(known[:, None], target.detach(), 0).to(log_p)
            divergence = (torch.xlogy(mean, mean) - mean * log_p).sum(dim=1)
            return average(divergence, known, avg_factor)
    groups = paired_groups(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        total = _CategoricalSum.apply(logits, groups, temperature, detach_mean)
        return total / (avg_factor or max(len(logits), 1))


class _CategoricalSum(torch.autograd.Function):
    """sum_i D_KL(pbar_i || p_i) of softmax predictions, with its own gradient.

    With p = softmax(z / T), and for a group g of m members the means pbar and L of
    their p and log p, all members share one mean, and the sum is one over groups::

        sum_g m <pbar, w>    with  w = log(pbar) - L

    Row k of the gradient, with respect to z_k / T, has two parts: p_k - pbar from the KL
    of k itself, and what flows through the mean, d sum / d pbar = m (w + 1), of which p_k
    has the share 1 / m. The 1 vanishes in the softmax, whose rows sum to one::

        p_k - pbar + p_k * (w - <p_k, w>)

    A log p below ``LOWEST_LOG`` counts as that in w; the gradient is otherwise the one above.

    The gradient is computed in the forward pass and written over the softmax, so at most
    one tensor (N, C) and two (G, C) are alive. Rows are processed in blocks, so that
    intermediate results are small and stay in the cache of a processor.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, groups: PairedGroups, temperature: float, detach_mean: bool
    ) -> Tensor:
        p, mean, log_mean = _softmax_and_means(logits, groups, temperature)
        divergence, log_ratio = _divergence_of_groups(mean, log_mean)
        if ctx.needs_input_grad[0]:
            _softmax_to_gradient(p, mean, None if detach_mean else log_ratio, groups)
            ctx.save_for_backward(p)
            ctx.temperature = temperature
        return (groups.sizes * divergence).sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                'categorical_consistency has no second derivative, and its gradient was '
                'asked for with create_graph=True: leave the term out of what is '
                'differentiated twice, such as a gradient penalty'
            )
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_output / ctx.temperature), None, None, None


def _softmax_and_means(
    logits: Tensor, groups: PairedGroups, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax p (N, C) in float32 at least, and each group's means of p and log p.

    Both means are (G + 1, C); the last row stands for the unpaired and is 0.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    p = torch.empty_like(logits, dtype=dtype)
    mean = p.new_zeros(len(groups.sizes), p.shape[1])
    log_mean = torch.zeros_like(mean)
    for rows, own, numbers in _blocks(logits, p, groups.numbers):
        rows = rows.to(dtype)
        shifted = rows - rows.amax(dim=1, keepdim=True)
        if temperature != 1:
            shifted.div_(temperature)
        torch.exp(shifted, out=own)
        totals = own.sum(dim=1, keepdim=True)
        mean.index_add_(0, numbers, own.div_(totals))
        log_mean.index_add_(0, numbers, shifted.sub_(totals.log_()).clamp_(min=LOWEST_LOG))
    counts = groups.sizes[:, None].clamp(min=1)
    for pbar, log_pbar, count in _blocks(mean, log_mean, counts):
        pbar.div_(count)
        log_pbar.div_(count)
    mean[-1].zero_()
    log_mean[-1].zero_()
    return p, mean, log_mean


def _divergence_of_groups(mean: Tensor, log_mean: Tensor) -> tuple[Tensor, Tensor]:
    """<pbar, w> (G,) and w = log(pbar) - L (G, C), which is written over L."""
    divergence = mean.new_empty(len(mean))
    for pbar, log_ratio, own in _blocks(mean, log_mean, divergence):
        # pbar * log(pbar) tends to 0 with pbar, and so does its gradient there.
        logarithm = pbar.clamp(min=torch.finfo(pbar.dtype).tiny).log_()
        torch.sub(logarithm, log_ratio, out=log_ratio)
        torch.sum(pbar * log_ratio, dim=1, out=own)
    return divergence, log_mean


def _softmax_to_gradient(
    p: Tensor, mean: Tensor, log_ratio: Tensor | None, groups: PairedGroups
) -> None:
    """Writes the gradient over p (N, C). Without w the mean counts as constant."""
    bits = torch.int64 if p.dtype == torch.float64 else torch.int32
    for own, numbers, paired in _blocks(p, groups.numbers, groups.paired):
        if log_ratio is not None:
            through = log_ratio.index_select(0, numbers).mul_(own)
            share = 1 - through.sum(dim=1, keepdim=True)
            torch.addcmul(through, own, share, out=own)
        own.sub_(mean.index_select(0, numbers))
        # Zeros for the unpaired, even where they hold NaN. Written as an operation on bits,
        # since masked_fill_ takes ten times as long on a CPU.
        own.view(bits).bitwise_and_(-paired[:, None].to(bits))


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of consecutive rows, the same of all tensors; the first is (N, C)."""
    entries = _CPU_BLOCK if tensors[0].device.type == 'cpu' else _DEVICE_BLOCK
    num_rows = max(entries // max(tensors[0].shape[1], 1), 1)
    return zip(*(tensor.split(num_rows) for tensor in tensors))
