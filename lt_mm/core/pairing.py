"""Which predictions are the same instance: the indicator 1(i, j).

A pairing is written as *group ids*: an integer for each prediction, equal for
predictions that are positives of each other, negative for those that pair with
nothing. It takes O(N) memory where the indicator itself would take N x N. All
functions have outputs of fixed size, so none makes the host wait for the device.
"""
from typing import List, Sequence, Tuple

import torch
from torch import Tensor

UNPAIRED = -1


def compact_ids(ids: Tensor) -> Tensor:
    """Numbers the distinct values of ids 0, 1, 2... in ascending order.

    Args:
        ids: (N,) integer.

    Returns:
        (N,) int64, all below N.
    """
    ordered, order = ids.sort()
    starts = torch.ones_like(ordered, dtype=torch.int64)
    starts[1:] = (ordered[1:] != ordered[:-1]).long()
    numbers = starts.cumsum(0) - 1
    return torch.empty_like(numbers).scatter_(0, order, numbers)


def compact_rows(rows: Tensor) -> Tensor:
    """Numbers the distinct rows of (N, k) integers: (N,) int64, all below N."""
    numbers = compact_ids(rows[:, 0])
    for column in rows.unbind(dim=1)[1:]:
        numbers = compact_ids(numbers * len(rows) + compact_ids(column))
    return numbers


def group_sizes(group_ids: Tensor) -> Tensor:
    """Size of the group of each prediction, 0 for the unpaired.

    Args:
        group_ids: (N,) integer, negative for predictions that pair with nothing.

    Returns:
        (N,) int64.
    """
    numbers = compact_ids(group_ids)
    counts = torch.zeros_like(numbers).index_add_(
        0, numbers, torch.ones_like(numbers))
    return torch.where(group_ids >= 0, counts[numbers], 0)


def is_paired(group_ids: Tensor) -> Tensor:
    """Which predictions have a positive besides themselves: (N,) to (N,) bool."""
    return group_sizes(group_ids) > 1


def groups_across_replicas(instance_ids: Tensor, replica_ids: Tensor,
                           keep: Tensor) -> Tensor:
    """`gt` pairing: predictions assigned to one annotation, in at least two replicas.

    Args:
        instance_ids: (N, k) integer, the source annotation that each prediction was
            assigned to.
        replica_ids: (N,) integer, the replica that each prediction was made in.
        keep: (N,) bool; False where an instance may not pair (too little visible).

    Returns:
        (N,) int64 group ids below N; ``UNPAIRED`` where ``keep`` is False or where
        every kept prediction of the annotation lies in the same replica.
    """
    groups = compact_rows(torch.cat([instance_ids, keep[:, None].long()], dim=1))
    size, replicas = (len(groups), ), replica_ids.long()
    first = replicas.new_zeros(size).scatter_reduce_(
        0, groups, replicas, 'amin', include_self=False)
    last = replicas.new_zeros(size).scatter_reduce_(
        0, groups, replicas, 'amax', include_self=False)
    return torch.where(keep & (first != last)[groups], groups, UNPAIRED)


def nearest_in_each_replica(group_ids: Tensor, replica_ids: Tensor,
                            distances: Tensor) -> Tensor:
    """Resort(p | y): keeps one prediction for each annotation and replica.

    Args:
        group_ids: (N,) int64, predictions grouped by annotation.
        replica_ids: (N,) integer.
        distances: (N,), of each restored prediction to its annotation; no gradient.

    Returns:
        (N,) int64: ``group_ids`` where the prediction is the nearest of its group in
        its replica (the first of equally near ones), ``UNPAIRED`` elsewhere.
    """
    cells = compact_rows(torch.stack([group_ids, replica_ids.long()], dim=1))
    distances = distances.detach()
    least = distances.new_zeros(len(cells)).scatter_reduce_(
        0, cells, distances, 'amin', include_self=False)
    rows = torch.arange(len(cells), device=cells.device)
    candidates = torch.where(distances == least[cells], rows, len(cells))
    winner = torch.full_like(rows, len(cells)).scatter_reduce_(
        0, cells, candidates, 'amin')
    return torch.where(winner[cells] == rows, group_ids, UNPAIRED)


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union: (n, 4) and (k, 4) xyxy to (n, k); 0 without area.

    In float32 at least: areas of ordinary boxes overflow in half precision.
    """
    if boxes_a.dtype != torch.float64:
        boxes_a, boxes_b = boxes_a.float(), boxes_b.float()
    low = torch.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    high = torch.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    area_a = (boxes_a[:, 2:] - boxes_a[:, :2]).clamp(min=0).prod(dim=-1)
    area_b = (boxes_b[:, 2:] - boxes_b[:, :2]).clamp(min=0).prod(dim=-1)
    union = area_a[:, None] + area_b[None] - common
    return torch.where(union > 0, common / torch.where(union > 0, union, 1), 0)


def greedy_iou_pairs(boxes_a: Tensor, boxes_b: Tensor, labels_a: Tensor,
                     labels_b: Tensor, iou_threshold: float = 0.5
                     ) -> Tuple[Tensor, Tensor]:
    """`iou` pairing of two replicas: best pair first, each box once, same class.

    All pairs that are mutually best are taken at once, which gives the pairs of the
    one-by-one greedy algorithm in far fewer steps. Equal IoUs are ordered by row,
    then column.

    Args:
        boxes_a: (n, 4) xyxy, restored to the source image; no gradient.
        boxes_b: (k, 4), likewise.
        labels_a: (n,) integer class of each box.
        labels_b: (k,) integer.
        iou_threshold: Smallest IoU of a pair.

    Returns:
        Rows of ``boxes_a`` and of ``boxes_b``, both (p,) int64, in the order of
        ``boxes_a``.
    """
    iou = pairwise_iou(boxes_a.detach(), boxes_b.detach())
    iou = torch.where(labels_a[:, None] == labels_b[None], iou, -1.0)
    iou = torch.where(iou >= iou_threshold, iou, -1.0)
    partner = torch.full((len(boxes_a), ), UNPAIRED, device=iou.device)
    rows = torch.arange(len(boxes_a), device=iou.device)
    while iou.numel() and bool((iou > 0).any()):
        best_b = iou.argmax(dim=1)
        best_a = iou.argmax(dim=0)
        mutual = (best_a[best_b] == rows) & (iou.amax(dim=1) > 0)
        partner = torch.where(mutual, best_b, partner)
        iou[mutual] = -1.0
        iou[:, best_b[mutual]] = -1.0
    matched = partner >= 0
    return rows[matched], partner[matched]


def greedy_iou_groups(boxes: Sequence[Tensor], labels: Sequence[Tensor],
                      iou_threshold: float = 0.5) -> List[Tensor]:
    """`iou` pairing of any number of replicas, one replica after the other.

    The first replica's boxes open a group each; every further replica is paired with
    the mean boxes of the groups (:func:`greedy_iou_pairs`), and what stays over opens
    groups of its own.

    Args:
        boxes: For each replica (n_k, 4) xyxy, restored to the source image; no
            gradient.
        labels: For each replica (n_k,) integer classes.
        iou_threshold: Smallest IoU with the mean of a group.

    Returns:
        For each replica (n_k,) int64 group ids; a group that nobody joined has one
        member.
    """
    boxes = [own.detach() for own in boxes]
    sums, counts, classes = boxes[0], boxes[0].new_ones(len(boxes[0])), labels[0]
    groups = [torch.arange(len(sums), device=sums.device)]
    for own, own_labels in zip(boxes[1:], labels[1:]):
        ids = torch.full((len(own), ), UNPAIRED, device=own.device)
        rows, joined = greedy_iou_pairs(own, sums / counts[:, None], own_labels, classes,
                                        iou_threshold)
        ids[rows] = joined
        new = ids == UNPAIRED
        ids[new] = len(sums) + torch.arange(int(new.sum()), device=own.device)
        sums = torch.cat([sums, torch.zeros_like(own[new])]).index_add(0, ids, own)
        counts = torch.cat([counts, counts.new_zeros(int(new.sum()))]).index_add(
            0, ids, counts.new_ones(len(own)))
        classes = torch.cat([classes, own_labels[new]])
        groups.append(ids)
    return groups
