"""The consistency term: D_KL(mean prediction || each restored prediction).

For n predictions p_i, brought back to the source frame, and the indicator 1(i, j) of
:mod:`lt_mm.core.pairing`::

    term   = 1/n * sum_i D_KL( pbar_i || p_i )
    pbar_i = sum_j 1(i, j) p_j / sum_j 1(i, j)

All functions take the predictions of a batch and their group ids, and give a scalar
in float32 or wider, under autocast too. The gradient flows to every paired prediction,
and through the mean unless ``detach_mean``. A prediction without a positive adds 0;
with no pair at all the term is 0 and still has a graph. Time and memory are linear in
the number of predictions: the mean is a segment reduction.
"""
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.pairing import compact_ids, is_paired

# Smallest side of a box in pixels, so that a collapsed prediction has a finite KL.
MIN_BOX_SIDE = 1e-2


def categorical_consistency(logits: Tensor,
                            group_ids: Tensor,
                            temperature: float = 1.0,
                            detach_mean: bool = False,
                            avg_factor: Optional[float] = None) -> Tensor:
    """Term for softmax classifiers.

    Args:
        logits: (N, C), unnormalised; receives gradient.
        group_ids: (N,) integer, equal for positives of each other, negative for
            predictions without one.
        temperature: Divides the logits before the softmax.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit, or the temperature or ``avg_factor`` is
            not positive.
    """
    _check(logits, group_ids, avg_factor, temperature)
    paired = is_paired(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        log_p = F.log_softmax(_only(paired, logits) / temperature, dim=1)
        mean = _group_mean(log_p.exp(), group_ids, detach_mean)
        # mean * log(mean) tends to 0 with the mean, and so does its gradient there.
        log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        divergence = (mean * (log_mean - log_p)).sum(dim=1)
        return _average(divergence, paired, avg_factor)


def bernoulli_consistency(logits: Tensor,
                          group_ids: Tensor,
                          temperature: float = 1.0,
                          detach_mean: bool = False,
                          avg_factor: Optional[float] = None) -> Tensor:
    """Term for sigmoid classifiers: the sum of the Bernoulli KLs of all classes.

    Args:
        logits: (N, C), unnormalised, one independent Bernoulli each; receives
            gradient.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        temperature: Divides the logits before the sigmoid.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit, or the temperature or ``avg_factor`` is
            not positive.
    """
    _check(logits, group_ids, avg_factor, temperature)
    paired = is_paired(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = _only(paired, logits) / temperature
        divergence = scaled.new_zeros(len(scaled))
        for signed in (scaled, -scaled):  # p and 1 - p, without cancellation
            log_p = F.logsigmoid(signed)
            mean = _group_mean(torch.sigmoid(signed), group_ids, detach_mean)
            log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
            divergence = divergence + (mean * (log_mean - log_p)).sum(dim=1)
        return _average(divergence, paired, avg_factor)


def box_consistency(boxes_xyxy: Tensor,
                    group_ids: Tensor,
                    detach_mean: bool = False,
                    avg_factor: Optional[float] = None) -> Tensor:
    """Term for boxes: KL between the axis-aligned Gaussians of two boxes.

    A box is the Gaussian whose mean is its centre and whose standard deviation is
    half its side, in x and in y. With the mean box (mu, sigma) and a box (mu_i,
    sigma_i), for each axis::

        log(sigma_i / sigma) + (sigma^2 + (mu - mu_i)^2) / (2 sigma_i^2) - 1/2

    It does not change when all boxes are scaled or shifted alike.

    Args:
        boxes_xyxy: (N, 4), restored to the source image, pixels; receives gradient.
            Sides below ``MIN_BOX_SIDE`` count as ``MIN_BOX_SIDE``.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.

    Returns:
        Scalar, >= 0 up to rounding.

    Raises:
        ValueError: If the shapes do not fit or ``avg_factor`` is not positive.
    """
    _check(boxes_xyxy, group_ids, avg_factor)
    if boxes_xyxy.shape[1] != 4:
        raise ValueError(f'boxes have shape {tuple(boxes_xyxy.shape)}; expected (N, 4), '
                         'xyxy, one box for each prediction')
    paired = is_paired(group_ids)
    with torch.autocast(boxes_xyxy.device.type, enabled=False):
        boxes = _only(paired, boxes_xyxy)
        center, sigma = _gaussians(boxes)
        mean_center, mean_sigma = _gaussians(_group_mean(boxes, group_ids, detach_mean))
        variance = sigma.square()
        offset = (mean_center - center).square()
        divergence = ((sigma / mean_sigma).log() +
                      (mean_sigma.square() + offset) / (2 * variance) - 0.5).sum(dim=1)
        return _average(divergence, paired, avg_factor)


def _gaussians(boxes_xyxy: Tensor) -> Tuple[Tensor, Tensor]:
    """Means and standard deviations, both (N, 2), of the Gaussians of boxes (N, 4)."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return (low + high) / 2, (high - low).clamp(min=MIN_BOX_SIDE) / 2


def _group_mean(values: Tensor, group_ids: Tensor, detach: bool) -> Tensor:
    """pbar: for each row of values (N, D) the mean of its group's rows, (N, D)."""
    if detach:
        values = values.detach()
    numbers = compact_ids(group_ids)
    ones = values.new_ones(len(values))
    counts = values.new_zeros(len(values)).index_add(0, numbers, ones)
    sums = torch.zeros_like(values).index_add(0, numbers, values)
    return sums[numbers] / counts[numbers, None]


def _average(divergence: Tensor, paired: Tensor, avg_factor: Optional[float]) -> Tensor:
    if avg_factor is None:
        avg_factor = max(len(divergence), 1)
    return torch.where(paired, divergence, 0).sum() / avg_factor


def _only(paired: Tensor, predictions: Tensor) -> Tensor:
    """Predictions (N, D) in float32 at least, with zeros for the unpaired.

    Half precision loses small divergences. An unpaired prediction may be anything, as
    a box that no matrix brings back; left in, its overflow would be 0 in the term but
    0 * inf, NaN, in the gradient.
    """
    wide = predictions if predictions.dtype == torch.float64 else predictions.float()
    return torch.where(paired[:, None], wide, 0)


def _check(predictions: Tensor, group_ids: Tensor, avg_factor: Optional[float],
           temperature: float = 1.0) -> None:
    if predictions.dim() != 2 or group_ids.shape != predictions.shape[:1]:
        raise ValueError(
            f'predictions have shape {tuple(predictions.shape)} and group ids '
            f'{tuple(group_ids.shape)}; expected (N, C) and (N,)')
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f'group ids are {group_ids.dtype}; expected integers')
    if not temperature > 0:
        raise ValueError(f'temperature is {temperature}; expected a positive number')
    if avg_factor is not None and not avg_factor > 0:
        raise ValueError(f'avg_factor is {avg_factor}; expected a positive number, as '
                         'max(number of predictions, 1)')
