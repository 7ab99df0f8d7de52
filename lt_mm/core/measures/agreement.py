"""How alike the predictions for the replicas of one source are: the term as a measure.

All functions take the predictions of many replicas and their group ids, which are equal
for predictions of the same thing and negative for predictions that do not count. They
measure one number for each of the G groups with two members or more, in ascending order
of their ids (:func:`paired_ids`), on the CPU in float64. Nothing here has a gradient.

Shares of pairs do not depend on the number of replicas m. The KL to the mean grows with
m, so only values of equal m can be compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lt_mm.core.consistency import box_divergences
from lt_mm.core.geometry import pairwise_iou
from lt_mm.core.pairing import greedy_iou_groups, group_sizes, paired_groups

ACTIVATIONS = ('softmax', 'sigmoid')
# A smaller probability counts as this one: the smallest normal float32. The logit is then 87
# below the largest.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny
# A smaller 1 - p of a sigmoid counts as this: float32 rounds it to 0.
SMALLEST_COMPLEMENT = 2.0**-25
# The sum of a row of probabilities from a softmax differs from 1 by at most this.
_SUM_TOLERANCE = 1e-2


def paired_ids(group_ids: Tensor) -> Tensor:
    """The ids of the groups with two members or more: (N,) integer to (G,), ascending."""
    ids = group_ids.cpu()
    return ids[paired_groups(ids).paired].unique()


def equal_groups(source_ids: Tensor, num_replicas: int | None = None) -> tuple[Tensor, int]:
    """Makes groups equally large, of the first replicas of each source.

    Samplers that give every rank equally many samples repeat some of them. The extra
    replicas of a source would make its KL larger, or smaller if they are exact copies.

    Args:
        source_ids: (N,) integer, in the order of evaluation.
        num_replicas: How many replicas of a source count; by default the most common
            number above 1, the smallest one if several are equally common.

    Returns:
        (N,) bool, which replicas count, and the number; 1 where no source has two replicas.
    """
    ids = source_ids.cpu()
    ordered, order = ids.sort(stable=True)
    starts = torch.searchsorted(ordered, ordered)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(ids)) - starts)
    if num_replicas is None:
        sizes = group_sizes(ids)[rank == 0]
        num_replicas = (
            int(torch.bincount(sizes[sizes > 1]).argmax()) if bool((sizes > 1).any()) else 1
        )
    return rank < num_replicas, num_replicas


def activation_of(probabilities: Tensor) -> str:
    """'softmax' if every row of probabilities (N, C) sums to 1, 'sigmoid' otherwise."""
    off = (probabilities.double().sum(dim=1) - 1).abs()
    return 'softmax' if bool((off <= _SUM_TOLERANCE).all()) else 'sigmoid'


def decided_labels(probabilities: Tensor, activation: str) -> Tensor:
    """Numbers the decisions of a classifier: equal numbers for equal decisions.

    Args:
        probabilities: (N, C).
        activation: 'softmax': the decision is the most probable class, the first one if several are
            equal. 'sigmoid': the set of classes with a probability of at least 1/2.

    Returns:
        (N,) int64: the class, or the number of the set among those that occur.
    """
    _check_activation(activation)
    if activation == 'softmax':
        return probabilities.argmax(dim=1)
    return torch.unique(probabilities >= 0.5, dim=0, return_inverse=True)[1]


def group_kl(probabilities: Tensor, group_ids: Tensor, activation: str = 'softmax') -> Tensor:
    """The mean of D_KL(pbar || p_i) over the members i of each group.

    This is the consistency term of a group (:mod:`lt_mm.core.consistency`), from
    probabilities instead of logits.

    Args:
        probabilities: (N, C). Those below ``SMALLEST_PROBABILITY`` count as that, so
            the value is finite.
        group_ids: (N,) integer.
        activation: 'softmax': categorical, rows sum to 1. 'sigmoid': the sum of the Bernoulli KLs
            of all classes; if 1 - p is below ``SMALLEST_COMPLEMENT``, it counts as that.

    Returns:
        (G,), >= 0 up to rounding, in nats.

    Raises:
        ValueError: For another activation.
    """
    _check_activation(activation)
    p, groups = _paired(probabilities.double(), group_ids)
    if activation == 'sigmoid':
        p = torch.cat([p, (1 - p).clamp(min=SMALLEST_COMPLEMENT)], dim=1)
    p = p.clamp(min=SMALLEST_PROBABILITY)
    mean = _means(p, groups)
    log_ratio = mean.log()[groups.numbers] - p.log()
    return _means((mean[groups.numbers] * log_ratio).sum(dim=1), groups)


def group_means(values: Tensor, group_ids: Tensor) -> Tensor:
    """The mean of each group's rows, the mean prediction: (N, D) to (G, D)."""
    return _means(*_paired(values.double(), group_ids))


def pair_agreement(labels: Tensor, group_ids: Tensor) -> Tensor:
    """The share of the pairs of members of each group that have the same label.

    Args:
        labels: (N,) integer.
        group_ids: (N,) integer.

    Returns:
        (G,) in [0, 1]: of the n (n - 1) / 2 pairs of n members.
    """
    labels, groups = _paired(labels, group_ids)
    numbers, _, counts = _label_counts(labels, groups)
    alike = groups.sizes.new_zeros(len(groups.sizes)).index_add_(0, numbers, counts * (counts - 1))
    return alike / (groups.sizes * (groups.sizes - 1)).double()


def pair_difference(values: Tensor, group_ids: Tensor) -> Tensor:
    """The mean absolute difference of a value over the pairs of members of each group.

    Args:
        values: (N,), for example scores.
        group_ids: (N,) integer.

    Returns:
        (G,) float64: over the n (n - 1) / 2 pairs of n members.
    """
    values, groups = _paired(values.double(), group_ids)
    values, order = values.sort(stable=True)
    numbers, inner = groups.numbers[order].sort(stable=True)
    values, sizes = values[inner], groups.sizes[numbers]
    rank = torch.arange(len(values)) - torch.searchsorted(numbers, numbers)
    # In ascending order, member number r is the larger one of r pairs and else the smaller one.
    signed = values * (2 * rank - (sizes - 1))
    sums = signed.new_zeros(len(groups.sizes)).index_add_(0, numbers, signed)
    return 2 * sums / (groups.sizes * (groups.sizes - 1))


def common_labels(labels: Tensor, group_ids: Tensor) -> Tensor:
    """The most common label of each group, the smallest one if several are equally common.

    Args:
        labels: (N,) integer, >= 0.
        group_ids: (N,) integer.

    Returns:
        (G,) int64.
    """
    labels, groups = _paired(labels.long(), group_ids)
    numbers, labels, counts = _label_counts(labels, groups)
    base = int(labels.max()) + 1 if len(labels) else 1
    # The key grows with the number of members; among equal numbers, the smaller label wins.
    best = labels.new_zeros(len(groups.sizes)).scatter_reduce_(
        0, numbers, counts * base + (base - 1 - labels), 'amax'
    )
    return base - 1 - best % base


def match_boxes(
    boxes_xyxy: Sequence[Tensor], source_ids: Tensor, iou_threshold: float = 0.5
) -> Tensor:
    """Matches the predicted boxes of the replicas of each source, whatever their class.

    The matching is greedy by IoU, see :func:`lt_mm.core.pairing.greedy_iou_groups`.

    Args:
        boxes_xyxy: For each of R replicas (n_r, 4), restored to the source image.
        source_ids: (R,) integer.
        iou_threshold: Smallest IoU of a box with the mean box of its group.

    Returns:
        (n_1 + ... + n_R,) int64 group ids >= 0 of all boxes, in their order; different
        for different sources. A box that matches no other has an id of its own.
    """
    groups: list[Tensor] = [torch.zeros(0, dtype=torch.int64)] * len(boxes_xyxy)
    first = 0
    for source in source_ids.unique():
        members = (source_ids == source).nonzero()[:, 0].tolist()
        own = [boxes_xyxy[member].cpu() for member in members]
        same_class = [torch.zeros(len(boxes), dtype=torch.int64) for boxes in own]
        matched = greedy_iou_groups(own, same_class, iou_threshold)
        for member, ids in zip(members, matched):
            groups[member] = ids + first
        first += sum(map(len, own))
    return torch.cat(groups) if groups else torch.zeros(0, dtype=torch.int64)


def group_iou(boxes_xyxy: Tensor, group_ids: Tensor) -> Tensor:
    """The mean IoU of each group's boxes with the mean box of the group.

    Args:
        boxes_xyxy: (N, 4), restored to the source image; pixels.
        group_ids: (N,) integer, as :func:`match_boxes` gives them.

    Returns:
        (G,) in [0, 1].
    """
    boxes, groups = _paired(boxes_xyxy.double(), group_ids)
    mean = _means(boxes, groups)[groups.numbers]
    return _means(pairwise_iou(boxes[:, None], mean[:, None])[:, 0, 0], groups)


def group_box_kl(boxes_xyxy: Tensor, group_ids: Tensor) -> float | None:
    """The mean KL of the paired boxes, not damped as the box term is; None without any.

    Args:
        boxes_xyxy: (N, 4), restored to the source image; pixels.
        group_ids: (N,) integer.

    Returns:
        See :func:`lt_mm.core.consistency.box_divergences`; in nats.
    """
    num_paired = int((group_sizes(group_ids) > 1).sum())
    if not num_paired:
        return None
    return float(box_divergences(boxes_xyxy, group_ids).sum() / num_paired)


def means_by_key(values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Averages the values that have the same key, for example the same class.

    Args:
        values: (G,).
        keys: (G,) integer.

    Returns:
        The K distinct keys, ascending; the mean of the values of each, (K,) float64;
        and their count, (K,) int64.
    """
    distinct, numbers, counts = keys.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(distinct), dtype=torch.float64)
    return distinct, sums.index_add_(0, numbers, values.double()) / counts, counts


class _Groups(NamedTuple):
    """The groups of P paired rows.

    Attributes:
        numbers: (P,) int64, the group of each row: 0, ..., G - 1 in the order of the ids.
        sizes: (G,) int64.
    """

    numbers: Tensor
    sizes: Tensor


def _paired(rows: Tensor, group_ids: Tensor) -> tuple[Tensor, _Groups]:
    """The rows that have a positive besides themselves, on the CPU, and their groups."""
    if group_ids.shape != rows.shape[:1]:
        raise ValueError(
            f'predictions have shape {tuple(rows.shape)} and group ids '
            f'{tuple(group_ids.shape)}; expected (N, ...) and (N,)'
        )
    # On the CPU the number of groups is exact.
    groups = paired_groups(group_ids.cpu())
    return rows.detach().cpu()[groups.paired], _Groups(
        groups.numbers[groups.paired], groups.sizes[:-1]
    )


def _means(values: Tensor, groups: _Groups) -> Tensor:
    """(P, ...) to (G, ...)."""
    sums = values.new_zeros(len(groups.sizes), *values.shape[1:])
    counts = groups.sizes.view(-1, *[1] * (values.dim() - 1))
    return sums.index_add_(0, groups.numbers, values) / counts


def _label_counts(labels: Tensor, groups: _Groups) -> tuple[Tensor, Tensor, Tensor]:
    """For each label that occurs in a group: number of the group, label, and its count."""
    cells, counts = torch.unique(
        torch.stack([groups.numbers, labels.long()]), dim=1, return_counts=True
    )
    return cells[0], cells[1], counts


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f'activation is {activation!r}; expected one of {ACTIVATIONS}')
