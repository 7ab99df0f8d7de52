"""Which predictions are the same instance: the indicator 1(i, j).

A pairing is written as *group ids*: an integer for each prediction, equal for
predictions that are positives of each other, negative for those that pair with
nothing. It takes O(N) memory where the indicator itself would take N x N. Only the
greedy matching by IoU makes the host wait for the device; all other functions have
outputs of fixed size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lt_mm.core.geometry.overlaps import box_areas, pairwise_iou, wide

UNPAIRED = -1
# Pixels that another class counts for, where the annotation of a target is looked for:
# more than rounding, less than any two annotations of a data set lie apart.
_LABEL_MISMATCH = 1e-2


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
    counts = torch.zeros_like(numbers).index_add_(0, numbers, torch.ones_like(numbers))
    return torch.where(group_ids >= 0, counts[numbers], 0)


def is_paired(group_ids: Tensor) -> Tensor:
    """Which predictions have a positive besides themselves: (N,) to (N,) bool."""
    return group_sizes(group_ids) > 1


class PairedGroups(NamedTuple):
    """The G groups of N predictions that have two members or more, numbered.

    On the CPU G is exact. Elsewhere asking for it would make the host wait, and G is
    N // 2, which is the most there can be; numbers that no group has, have size 0.

    Args:
        numbers: (N,) int64, 0, 1, 2... in the order of the ids; G for the unpaired.
        sizes: (G + 1,) int64, members of each; the last counts the unpaired.
        paired: (N,) bool.
    """

    numbers: Tensor
    sizes: Tensor
    paired: Tensor


def paired_groups(group_ids: Tensor) -> PairedGroups:
    """Numbers the groups that pair, with one sort.

    Args:
        group_ids: (N,) integer, negative for predictions that pair with nothing.
    """
    ordered, order = group_ids.sort()
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    last = torch.ones_like(first)
    last[:-1] = first[1:]
    paired = ~(first & last) & (ordered >= 0)
    first &= paired
    num_groups = int(first.sum()) if _counting_is_free(first) else len(first) // 2
    numbers = torch.where(paired, first.cumsum(0) - 1, num_groups)
    sizes = numbers.new_zeros(num_groups + 1).index_add_(0, numbers, torch.ones_like(numbers))
    numbers = torch.empty_like(numbers).scatter_(0, order, numbers)
    return PairedGroups(numbers, sizes, numbers < num_groups)


def _counting_is_free(tensor: Tensor) -> bool:
    """Whether the host need not wait to know what is in a tensor."""
    return tensor.device.type == 'cpu'


def groups_across_replicas(instance_ids: Tensor, replica_ids: Tensor, keep: Tensor) -> Tensor:
    """Predictions assigned to one annotation, in at least two replicas.

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
    size, replicas = (len(groups),), replica_ids.long()
    first = replicas.new_zeros(size).scatter_reduce_(
        0, groups, replicas, 'amin', include_self=False
    )
    last = replicas.new_zeros(size).scatter_reduce_(0, groups, replicas, 'amax', include_self=False)
    return torch.where(keep & (first != last)[groups], groups, UNPAIRED)


def nearest_in_each_replica(group_ids: Tensor, replica_ids: Tensor, distances: Tensor) -> Tensor:
    """Resort(p | y): keeps one prediction for each annotation and replica.

    Args:
        group_ids: (N,) int64, predictions grouped by annotation.
        replica_ids: (N,) integer.
        distances: (N,), of each prediction to its annotation, such as
            :func:`distance_to_annotations`; no gradient.

    Returns:
        (N,) int64: ``group_ids`` where the prediction is the nearest of its group in
        its replica (the first of equally near ones), ``UNPAIRED`` elsewhere.
    """
    cells = compact_rows(torch.stack([group_ids, replica_ids.long()], dim=1))
    distances = distances.detach()
    least = distances.new_zeros(len(cells)).scatter_reduce_(
        0, cells, distances, 'amin', include_self=False
    )
    rows = torch.arange(len(cells), device=cells.device)
    candidates = torch.where(distances == least[cells], rows, len(cells))
    winner = torch.full_like(rows, len(cells)).scatter_reduce_(0, cells, candidates, 'amin')
    return torch.where(winner[cells] == rows, group_ids, UNPAIRED)


def distance_to_annotations(
    boxes_xyxy: Tensor, annotations_xyxy: Tensor, given: Tensor | None = None
) -> Tensor:
    """How far each prediction is from its annotation, for :func:`nearest_in_each_replica`.

    1 - IoU. Boxes that do not overlap come after all that do, ordered by the distance between
    the sides of the two boxes. Given ones come last.

    Args:
        boxes_xyxy: (N, 4), pixels of the replica; no gradient flows.
        annotations_xyxy: (N, 4), the annotation of each as it lies in the replica.
        given: (N,) bool, which predictions were told the annotation.

    Returns:
        (N,) in float32 or wider, in [0, 2], 2 for boxes that are not finite; given ones above.
    """
    boxes, annotations = wide(boxes_xyxy.detach()), wide(annotations_xyxy)
    iou = pairwise_iou(boxes[:, None], annotations[:, None])[:, 0, 0]
    size = (annotations[:, 2:] - annotations[:, :2]).sum(dim=1).clamp(min=1)
    gap = (boxes - annotations).abs().sum(dim=1) / size
    distance = torch.where(iou > 0, 1 - iou, 1 + gap / (1 + gap)).nan_to_num(nan=2.0)
    return distance if given is None else distance + 3 * given


def paired_share(paired: Tensor, instances: Tensor, count: int) -> Tensor:
    """Share of instances that have a paired prediction.

    Args:
        paired: (N,) bool, which predictions have a pair.
        instances: (N,) int64 below ``count``, the instance of each prediction.
        count: Number of instances in the batch.

    Returns:
        Scalar float32 in [0, 1]; 0 without instances.
    """
    hit = instances.new_zeros(max(count, 1)).index_add_(0, instances, paired.long())
    return (hit > 0).float().mean()


def group_hulls(boxes_xyxy: Tensor, group_ids: Tensor) -> Tensor:
    """For each box (N, 4) the smallest box around all of its group: (N, 4)."""
    numbers = compact_ids(group_ids)[:, None].expand(-1, 4)
    low = torch.zeros_like(boxes_xyxy).scatter_reduce_(
        0, numbers, boxes_xyxy, 'amin', include_self=False
    )
    high = torch.zeros_like(boxes_xyxy).scatter_reduce_(
        0, numbers, boxes_xyxy, 'amax', include_self=False
    )
    return torch.cat([low[:, :2], high[:, 2:]], dim=1).gather(0, numbers)


def annotation_of_target(
    targets_xyxy: Tensor, target_labels: Tensor, gt_xyxy: Tensor, gt_labels: Tensor
) -> Tensor:
    """Which annotation regression targets were made from.

    Args:
        targets_xyxy: (P, 4), boxes that P predictions are to reach; pixels. Equal to
            an annotation up to rounding.
        target_labels: (P,) integer.
        gt_xyxy: (G, 4) annotations, G > 0 where P > 0.
        gt_labels: (G,) integer.

    Returns:
        (P,) int64 rows of ``gt_xyxy``. Of annotations with the same box, up to
        rounding, the one with the same label.
    """
    if not len(targets_xyxy):
        return target_labels.new_zeros(0, dtype=torch.int64)
    distance = (targets_xyxy[:, None] - gt_xyxy[None]).abs().sum(dim=2)
    other_class = target_labels[:, None] != gt_labels[None]
    return (distance + _LABEL_MISMATCH * other_class).argmin(dim=1)


def best_of_annotations(scores: Tensor, boxes_xyxy: Tensor, annotations_xyxy: Tensor) -> Tensor:
    """The prediction of each annotation that is best by its score times its overlap.

    Args:
        scores: (n, G), the score of each prediction for the class of each annotation.
        boxes_xyxy: (n, 4), n > 0.
        annotations_xyxy: (G, 4).

    Returns:
        (G,) int64 rows of the predictions. Where none overlaps, the nearest one.
    """
    iou = pairwise_iou(boxes_xyxy, annotations_xyxy)
    gap = (wide(boxes_xyxy)[:, None] - wide(annotations_xyxy)[None]).abs().sum(dim=2)
    return torch.where(iou > 0, scores * iou, -gap).nan_to_num(nan=-torch.inf).argmax(dim=0)


def same_source_by_area(boxes_a: Tensor, boxes_b: Tensor, threshold: float = 0.8) -> Tensor:
    """The paper's test, without ids, whether two images are replicas of one source.

    The area that all boxes of one image have together, over that of the other's: of
    two replicas the restored boxes are alike, and the ratio is near 1. Necessary, not
    sufficient: two different images can hold boxes of equal area. Where sample ids
    exist they decide.

    Args:
        boxes_a: (n, 4) xyxy, restored to the source image; pixels.
        boxes_b: (k, 4), likewise.
        threshold: Smallest ratio, in (0, 1].

    Returns:
        Scalar bool; False where either image has no area to compare.

    Raises:
        ValueError: If the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f'threshold is {threshold}; expected a ratio in (0, 1]')
    total_a, total_b = box_areas(wide(boxes_a)).sum(), box_areas(wide(boxes_b)).sum()
    least, most = torch.minimum(total_a, total_b), torch.maximum(total_a, total_b)
    return (least >= threshold * most) & (least > 0)


def greedy_iou_pairs(
    boxes_a: Tensor, boxes_b: Tensor, labels_a: Tensor, labels_b: Tensor, iou_threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """`iou` pairing of two replicas: best pair first, each box once, same class.

    Equal IoUs are ordered by row, then column.

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
    allowed = (labels_a[:, None] == labels_b[None]) & (iou >= iou_threshold)
    partner = _greedy_partners(torch.where(allowed, iou, -1.0)[None])[0]
    matched = partner >= 0
    rows = torch.arange(len(boxes_a), device=iou.device)
    return rows[matched], partner[matched]


def _greedy_partners(iou: Tensor) -> Tensor:
    """Greedy matching of s pairs of replicas at once: (s, n, k) to (s, n).

    All pairs that are mutually best are taken together, which gives the pairs of the
    one-by-one algorithm in far fewer steps; each step makes the host wait once.

    Args:
        iou: Modified; what may not pair is 0 or less.

    Returns:
        (s, n) int64, the column of each row's partner; ``UNPAIRED`` without one.
    """
    partner = torch.full(iou.shape[:2], UNPAIRED, device=iou.device)
    rows = torch.arange(iou.shape[1], device=iou.device)
    columns = torch.arange(iou.shape[2], device=iou.device)
    while iou.numel() and bool((iou > 0).any()):
        best, best_column = iou.max(dim=2)
        best_row = iou.argmax(dim=1)
        mutual = (best_row.gather(1, best_column) == rows) & (best > 0)
        partner = torch.where(mutual, best_column, partner)
        taken = torch.where(mutual, best_column, UNPAIRED)
        used = mutual[:, :, None] | (taken[:, :, None] == columns).any(1, keepdim=True)
        iou = iou.masked_fill(used, -1.0)
    return partner


def iou_groups(
    boxes: Tensor, labels: Tensor, valid: Tensor, members: Tensor, iou_threshold: float = 0.5
) -> Tensor:
    """`iou` pairing of all replicas of a batch, one replica a source after the other.

    The first replica's boxes open a group each; every further replica is paired with
    the mean boxes of the groups, greedily by IoU, and what stays over opens groups of
    its own. All sources are handled at once.

    Args:
        boxes: (R, K, 4) xyxy, K predictions of each of R replicas, restored to the
            source image; no gradient.
        labels: (R, K) integer classes; only equal ones pair.
        valid: (R, K) bool; False for what takes no part (padding, little confidence).
        members: (S, m) int64, the replicas of each of S sources, filled up with
            ``UNPAIRED``.
        iou_threshold: Smallest IoU with the mean of a group.

    Returns:
        (R, K) int64 group ids, ``UNPAIRED`` where not ``valid``. A group that nobody
        joined has one member.
    """
    boxes = wide(boxes.detach())
    (num_replicas, num_boxes), (num_sources, steps) = labels.shape, members.shape
    sums = boxes.new_zeros(num_sources, steps * num_boxes, 4)
    counts = boxes.new_zeros(num_sources, steps * num_boxes)
    classes = labels.new_zeros(num_sources, steps * num_boxes)
    # One row more than replicas: UNPAIRED is its index too, and what is written there
    # for sources that have fewer replicas than others is left out in the end.
    groups = torch.full((num_replicas + 1, num_boxes), UNPAIRED, device=boxes.device)
    slots = torch.arange(num_boxes, device=boxes.device)
    first_id = torch.arange(num_sources, device=boxes.device)[:, None] * counts.shape[1]
    for step, replica in enumerate(members.unbind(dim=1)):
        begin, end = step * num_boxes, (step + 1) * num_boxes
        present = valid[replica] & (replica != UNPAIRED)[:, None]
        own = torch.where(present[..., None], boxes[replica], 0)
        means = sums[:, :begin] / counts[:, :begin, None].clamp(min=1)
        iou = pairwise_iou(own, means)
        allowed = (labels[replica][:, :, None] == classes[:, None, :begin]) & (iou >= iou_threshold)
        partner = _greedy_partners(torch.where(allowed, iou, -1.0))
        group = torch.where(partner == UNPAIRED, begin + slots, partner)
        classes[:, begin:end] = labels[replica]
        sums.scatter_add_(1, group[..., None].expand(-1, -1, 4), own)
        counts.scatter_add_(1, group, present.to(counts))
        groups[replica] = torch.where(present, group + first_id, UNPAIRED)
    return groups[:-1]


def greedy_iou_groups(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], iou_threshold: float = 0.5
) -> list[Tensor]:
    """:func:`iou_groups` of the replicas of one source, any number of boxes each.

    Args:
        boxes: For each replica (n_k, 4) xyxy, restored to the source image; no
            gradient.
        labels: For each replica (n_k,) integer classes.
        iou_threshold: Smallest IoU with the mean of a group.

    Returns:
        For each replica (n_k,) int64 group ids 0, 1... in order of appearance.
    """
    sizes = [len(own) for own in boxes]
    device = boxes[0].device
    valid = torch.arange(max(sizes), device=device) < torch.tensor(sizes, device=device)[:, None]
    groups = iou_groups(
        pad_sequence([own.detach() for own in boxes], batch_first=True),
        pad_sequence(list(labels), batch_first=True),
        valid,
        torch.arange(len(sizes), device=device)[None],
        iou_threshold,
    )
    return list(compact_ids(groups[valid]).split(sizes))
