"""The terms of boxes: as Gaussians, and as distributions of their sides."""

import torch
from torch import Tensor

from lt_mm.core.consistency.common import (
    average,
    check_predictions,
    group_mean,
    group_sum,
    known_targets,
    zero_unless,
)
from lt_mm.core.consistency.replica_means import Cells
from lt_mm.core.pairing import PairedGroups, paired_groups

# Smallest side of a box in pixels, so that a collapsed prediction has a finite KL.
MIN_BOX_SIDE = 1e-2
# A box may differ from the mean by so many times its own size. More counts as this much,
# without gradient.
_LARGEST_RATIO = 1e9
# Share of each distribution of a side that is spread over all bins of the group.
BIN_FLOOR = 1e-3


def box_consistency(
    boxes_xyxy: Tensor,
    group_ids: Tensor,
    detach_mean: bool = False,
    avg_factor: float | None = None,
    whole_sides: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Term for boxes: the KL between the axis-aligned Gaussians of two boxes, damped.

    A box is the Gaussian whose mean is its centre and whose standard deviation is half its side, in
    x and in y. With the mean box (mu, sigma) and a box (mu_i, sigma_i) the divergence of an axis is
    ``log(1 + KL)``, where::

        KL = log(sigma_i / sigma) + (sigma^2 + (mu - mu_i)^2) / (2 sigma_i^2) - 1/2

    The two axes are summed. The term does not change when all boxes are scaled or shifted alike.

    Near agreement it is the KL: KL - KL^2 / 2 + ..., and the KL is itself of second order in the
    differences of the boxes. Far away it grows like a logarithm, where the KL grows like the square
    of the distance: boxes that are k times as far apart add at most 2 log k to an axis. So its
    gradient is bounded, in units of the boxes' own sides, and boxes of random initialisation, which
    are small and far apart, cannot outweigh the stock loss.

    Args:
        boxes_xyxy: (N, 4), restored to the source image, pixels; receives gradient.
            Sides below ``MIN_BOX_SIDE`` count as ``MIN_BOX_SIDE``.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
        whole_sides: (N, 4) bool, whether the left, top, right and bottom side is whole; all are
            unless given. A box takes part in an axis, in the mean as well, where both of its
            sides are whole (:func:`compared_axes`).
        target: (N, 4), if given, the mean box that each is compared with, NaN for sides that it
            does not know; see :func:`categorical_consistency`.
    """
    check_predictions(boxes_xyxy, group_ids, avg_factor)
    divergences, compared = _axis_divergences(
        boxes_xyxy, group_ids, detach_mean, whole_sides, target
    )
    term = average(divergences.log1p(), compared, avg_factor)
    return term if boxes_xyxy.dtype == torch.float64 else term.float()


def box_divergences(boxes_xyxy: Tensor, group_ids: Tensor) -> Tensor:
    """The KLs of :func:`box_consistency` as they are, not damped: (N,) float64, 0 if unpaired."""
    check_predictions(boxes_xyxy, group_ids, None)
    divergences, compared = _axis_divergences(boxes_xyxy, group_ids, False, None)
    return torch.where(compared, divergences, 0).sum(dim=1)


def compared_sides(group_ids: Tensor, whole_sides: Tensor) -> Tensor:
    """Which sides are compared: those that are whole in another member of the group too.

    Args:
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        whole_sides: (N, D) bool.

    Returns:
        (N, D) bool.
    """
    return _compared(paired_groups(group_ids), whole_sides)


def compared_axes(group_ids: Tensor, whole_sides: Tensor, target: Tensor | None = None) -> Tensor:
    """Which axes of boxes are compared: both sides are whole, in another member of the group too.

    Args:
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        whole_sides: (N, 4) bool, for the left, top, right and bottom side.
        target: As in :func:`box_consistency`; both sides have to be known there instead.

    Returns:
        (N, 2) bool, for x and y.
    """
    if target is not None:
        known = whole_sides & known_targets(target, whole_sides, group_ids)
        return known[:, :2] & known[:, 2:]
    return compared_sides(group_ids, whole_sides[:, :2] & whole_sides[:, 2:])


def side_consistency(
    side_logits: Tensor,
    positions: Tensor,
    group_ids: Tensor,
    detach_mean: bool = False,
    avg_factor: float | None = None,
    whole_sides: Tensor | None = None,
    cells: Cells | None = None,
    compared_ids: Tensor | None = None,
) -> Tensor:
    """Term for boxes whose sides are predicted as distributions (GFL): their true KL, damped.

    Each prediction spreads the probability of a side over K positions of its own. These
    are brought to common bins: for each group and side 2K + 1 of them around the mean
    expected position, as far apart as the group's widest spacing. A position between two
    bins is shared by them linearly; one outside counts for the outermost bin. The KL of
    the mean distribution to each is summed over the bins, and ``log(1 + KL)`` over the four
    sides, for the reasons that :func:`box_consistency` gives. A share ``BIN_FLOOR`` of each
    distribution is uniform, so that bins which one prediction cannot reach cost a finite
    amount. The bins count as constant in the gradient.

    Args:
        side_logits: (N, 4, K), unnormalised, for the left, top, right and bottom side
            in the source image; receives gradient.
        positions: (N, 4, K), where each lies in the source image, evenly spaced;
            pixels. No gradient flows to them.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
        whole_sides: (N, 4) bool, whether a side is whole; all are unless given. The others take
            no part, nor in the mean (:func:`compared_sides`).
        cells: If given, the distributions are averaged within each cell, whose sides are whole
            alike, before they are compared.
        compared_ids: (N,) integer, the group ids of those that are then compared, such as one
            prediction of each cell; ``group_ids`` unless given.
    """
    shape = tuple(side_logits.shape)
    if len(shape) != 3 or shape[1] != 4 or not shape[2] or positions.shape != shape:
        raise ValueError(
            f'side logits have shape {shape} and positions have '
            f'{tuple(positions.shape)}; expected (N, 4, K) for both, with K > 0'
        )
    check_predictions(side_logits.flatten(1), group_ids, avg_factor)
    groups = paired_groups(group_ids)
    whole = _checked_sides(whole_sides, side_logits)
    compared = _compared(groups, whole)
    with torch.autocast(side_logits.device.type, enabled=False):
        wide = zero_unless(compared[..., None], side_logits)
        places = zero_unless(compared[..., None], positions.detach())
        spread = _in_common_bins(wide.softmax(dim=2), places, groups, compared)
        if cells is not None:
            spread = cells.mean(spread)
        if compared_ids is not None:
            groups = paired_groups(compared_ids)
            compared = _compared(groups, whole)
        # Where nothing is compared, a distribution that has a logarithm.
        spread = torch.where(compared[..., None], spread, 1 / spread.shape[2])
        counts = compared[..., None].expand_as(spread).flatten(1).to(spread)
        mean = group_mean(spread.flatten(1), groups, detach_mean, counts).view_as(spread)
        # There is no mean either.
        mean = torch.where(compared[..., None], mean, 1)
        divergences = (mean * (mean.log() - spread.log())).sum(dim=2)
        return average(divergences.log1p(), compared, avg_factor)


def _axis_divergences(
    boxes_xyxy: Tensor,
    group_ids: Tensor,
    detach_mean: bool,
    whole_sides: Tensor | None,
    target: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The KL of each box and axis, (N, 2) float64, and which of them are compared, (N, 2) bool."""
    if boxes_xyxy.shape[1] != 4:
        raise ValueError(
            f'boxes have shape {tuple(boxes_xyxy.shape)}; expected (N, 4), '
            'xyxy, one box for each prediction'
        )
    groups = paired_groups(group_ids)
    whole = _checked_sides(whole_sides, boxes_xyxy)
    if target is None:
        compared = _compared(groups, whole[:, :2] & whole[:, 2:])
    else:
        compared = compared_axes(group_ids, whole, target)
    sides = compared.repeat(1, 2)
    with torch.autocast(boxes_xyxy.device.type, enabled=False):
        # Squares, and the gradients of quotients, leave float32 long before boxes do.
        boxes = zero_unless(sides, boxes_xyxy).double()
        center, sigma = _gaussians(boxes)
        if target is None:
            mean = group_mean(boxes, groups, detach_mean, sides.to(boxes))
        else:
            mean = zero_unless(sides, target.detach()).double()
        mean_center, mean_sigma = _gaussians(mean)
        ratio = mean_sigma / sigma
        offset = ((mean_center - center) / sigma).clamp(-_LARGEST_RATIO, _LARGEST_RATIO)
        squares = ratio.clamp(max=_LARGEST_RATIO).square() + offset.square()
        return squares / 2 - ratio.log() - 0.5, compared


def _checked_sides(whole_sides: Tensor | None, predictions: Tensor) -> Tensor:
    """(N, 4) bool, all True where none are given."""
    shape = (len(predictions), 4)
    if whole_sides is None:
        return torch.ones(shape, dtype=torch.bool, device=predictions.device)
    if whole_sides.shape != shape or whole_sides.dtype != torch.bool:
        raise ValueError(
            f'whole_sides is {whole_sides.dtype} of shape {tuple(whole_sides.shape)}; '
            f'expected {torch.bool} of shape {shape}, the four sides of each prediction'
        )
    return whole_sides


def _compared(groups: PairedGroups, whole: Tensor) -> Tensor:
    counts = group_sum(whole.to(groups.sizes), groups)
    return whole & groups.paired[:, None] & (counts > 1)


def _in_common_bins(
    probabilities: Tensor, positions: Tensor, groups: PairedGroups, compared: Tensor
) -> Tensor:
    """Distributions (N, 4, K) over positions of their own, over common bins: (N, 4, 2K+1).

    The positions of what is not compared, (N, 4) bool, are 0.
    """
    count = probabilities.shape[2]
    expected = (probabilities * positions).sum(dim=2)
    middle = group_mean(expected, groups, detach=True, weights=compared.to(expected))
    spacing = (positions[..., -1] - positions[..., 0]).abs() / max(count - 1, 1)
    numbers = groups.numbers[:, None].expand(-1, 4)
    widest = spacing.new_zeros(len(groups.sizes), 4).scatter_reduce_(0, numbers, spacing, 'amax')
    width = widest.gather(0, numbers).clamp(min=MIN_BOX_SIDE)
    places = (positions - middle[..., None]) / width[..., None] + count
    places = places.clamp(0, 2 * count)
    low = places.floor().clamp(max=2 * count - 1)
    share = (places - low).to(probabilities)
    bins = probabilities.new_zeros(*probabilities.shape[:2], 2 * count + 1)
    bins = bins.scatter_add(2, low.long(), probabilities * (1 - share))
    bins = bins.scatter_add(2, low.long() + 1, probabilities * share)
    return (1 - BIN_FLOOR) * bins + BIN_FLOOR / bins.shape[2]


def _gaussians(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations, both (N, 2), of the Gaussians of boxes (N, 4)."""
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    return (low + high) / 2, (high - low).clamp(min=MIN_BOX_SIDE) / 2
