"""The terms of boxes: as Gaussians, and as distributions of their sides."""

import torch
from torch import Tensor

from lt_mm.core.consistency.common import average, check_predictions, group_mean, zero_unpaired
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
) -> Tensor:
    """Term for boxes: KL between the axis-aligned Gaussians of two boxes.

    A box is the Gaussian whose mean is its centre and whose standard deviation is half its side, in
    x and in y. With the mean box (mu, sigma) and a box (mu_i, sigma_i), for each axis::

        log(sigma_i / sigma) + (sigma^2 + (mu - mu_i)^2) / (2 sigma_i^2) - 1/2

    It does not change when all boxes are scaled or shifted alike.

    Args:
        boxes_xyxy: (N, 4), restored to the source image, pixels; receives gradient.
            Sides below ``MIN_BOX_SIDE`` count as ``MIN_BOX_SIDE``.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
    """
    check_predictions(boxes_xyxy, group_ids, avg_factor)
    if boxes_xyxy.shape[1] != 4:
        raise ValueError(
            f'boxes have shape {tuple(boxes_xyxy.shape)}; expected (N, 4), '
            'xyxy, one box for each prediction'
        )
    groups = paired_groups(group_ids)
    with torch.autocast(boxes_xyxy.device.type, enabled=False):
        boxes = zero_unpaired(groups.paired, boxes_xyxy)
        # Squares, and the gradients of quotients, leave float32 long before boxes do.
        center, sigma = _gaussians(boxes.double())
        mean_center, mean_sigma = _gaussians(group_mean(boxes.double(), groups, detach_mean))
        ratio = mean_sigma / sigma
        offset = ((mean_center - center) / sigma).clamp(-_LARGEST_RATIO, _LARGEST_RATIO)
        squares = ratio.clamp(max=_LARGEST_RATIO).square() + offset.square()
        divergence = (squares / 2 - ratio.log() - 0.5).sum(dim=1)
        return average(divergence, groups.paired, avg_factor).to(boxes.dtype)


def side_consistency(
    side_logits: Tensor,
    positions: Tensor,
    group_ids: Tensor,
    detach_mean: bool = False,
    avg_factor: float | None = None,
    cells: Cells | None = None,
    compared_ids: Tensor | None = None,
) -> Tensor:
    """Term for boxes whose sides are predicted as distributions (GFL): their true KL.

    Each prediction spreads the probability of a side over K positions of its own. These
    are brought to common bins: for each group and side 2K + 1 of them around the mean
    expected position, as far apart as the group's widest spacing. A position between two
    bins is shared by them linearly; one outside counts for the outermost bin. The KL of
    the mean distribution to each is summed over the bins and the four sides. A share
    ``BIN_FLOOR`` of each distribution is uniform, so that bins which one prediction
    cannot reach cost a finite amount. The bins count as constant in the gradient.

    Args:
        side_logits: (N, 4, K), unnormalised, for the left, top, right and bottom side
            in the source image; receives gradient.
        positions: (N, 4, K), where each lies in the source image, evenly spaced;
            pixels. No gradient flows to them.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
        cells: If given, the distributions are averaged within each cell before they are
            compared.
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
    with torch.autocast(side_logits.device.type, enabled=False):
        wide = zero_unpaired(groups.paired, side_logits.flatten(1)).view_as(side_logits)
        places = zero_unpaired(groups.paired, positions.detach().flatten(1)).view_as(positions)
        spread = _in_common_bins(wide.softmax(dim=2), places, groups)
        if cells is not None:
            spread = cells.mean(spread)
        if compared_ids is not None:
            groups = paired_groups(compared_ids)
            # Where nothing is compared, a distribution that has a logarithm.
            spread = torch.where(groups.paired[:, None, None], spread, 1 / spread.shape[2])
        log_p = spread.log().flatten(1)
        mean = group_mean(spread.flatten(1), groups, detach_mean)
        divergence = (mean * (mean.log() - log_p)).sum(dim=1)
        return average(divergence, groups.paired, avg_factor)


def _in_common_bins(probabilities: Tensor, positions: Tensor, groups: PairedGroups) -> Tensor:
    """Distributions (N, 4, K) over positions of their own, over common bins: (N, 4, 2K+1)."""
    count = probabilities.shape[2]
    expected = (probabilities * positions).sum(dim=2)
    middle = group_mean(expected, groups, detach=True)
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
