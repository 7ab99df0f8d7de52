"""Where pairs of detections are formed: the indicator 1(i, j) of a batch.

The mathematics is in :mod:`lt_mm.core.pairing`; here it is given what a batch holds.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lt_mm.core.pairing import UNPAIRED, groups_across_replicas, iou_groups, nearest_in_each_replica
from lt_mm.models.heads.gathering import GatheredBatch


def form_pairs(batch: GatheredBatch, pairing: str, iou_threshold: float) -> Tensor:
    """Forms the pairs among the candidates of a batch.

    Args:
        batch: Its columns are, for Q candidates, 'images' (Q,) int64 and 'may_pair' (Q,) bool.
            For 'gt' and 'gt_nearest' also 'instances' (Q, 2) int64, the source annotation of
            each, and for 'gt_nearest' 'distances' (Q,) of the restored box from the restored
            annotation. For 'iou' also 'restored' (Q, 4), boxes in pixels of their sources,
            and 'labels' (Q,) int64.
        pairing: As in ``ConsistencyOptions``.
        iou_threshold: Likewise.

    Returns:
        (Q,) int64 group ids: equal for positives of each other, negative for the unpaired.
    """
    columns = batch.columns
    if pairing == 'iou':
        return _overlapping(batch, iou_threshold)
    # One annotation, in at least two replicas.
    group_ids = groups_across_replicas(columns['instances'], columns['images'], columns['may_pair'])
    if pairing == 'gt_nearest':
        group_ids = nearest_in_each_replica(group_ids, columns['images'], columns['distances'])
    return group_ids


def _overlapping(batch: GatheredBatch, iou_threshold: float) -> Tensor:
    """Restored boxes of one class that overlap, at most one of each replica in a group."""
    columns = batch.columns
    images: dict[int, list[int]] = {}
    for image, source in enumerate(batch.source_ids):
        images.setdefault(source, []).append(image)
    members = pad_sequence(
        [torch.tensor(own) for own in images.values()], batch_first=True, padding_value=UNPAIRED
    )
    counts = columns['images'].bincount(minlength=len(batch.source_ids)).tolist()
    boxes, labels, valid = (
        pad_sequence(columns[name].detach().split(counts), batch_first=True)
        for name in ('restored', 'labels', 'may_pair')
    )
    groups = iou_groups(boxes, labels, valid, members.to(boxes.device), iou_threshold)
    return torch.cat([own[:count] for own, count in zip(groups, counts)])
