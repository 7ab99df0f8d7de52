"""Where pairs of detections are formed: the indicator 1(i, j) of a batch.

The mathematics is in :mod:`lt_mm.core.pairing`; here it is given what a batch holds.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lt_mm.core.consistency import Cells, replica_cells
from lt_mm.core.memory import instance_groups
from lt_mm.core.pairing import (
    UNPAIRED,
    groups_across_replicas,
    iou_groups,
    is_paired,
    nearest_in_each_replica,
)
from lt_mm.models.heads.gathering import GatheredBatch


@dataclass
class Pairs:
    """The pairs among Q candidates, and what is compared of them.

    Attributes:
        group_ids: (Q,) int64: equal for positives of each other, negative for the unpaired.
        cells: The predictions of one group in one replica, if their mean stands for each.
        one_each: Whether each cell then counts once, or as often as it has predictions.
        targets: With a memory, for each kind of term the means (Q, ...) that the predictions are
            compared with instead of those of their groups; NaN where there is nothing.
    """

    group_ids: Tensor
    cells: Cells | None = None
    one_each: bool = True
    targets: dict[str, Tensor] = field(default_factory=dict)

    @property
    def compared_ids(self) -> Tensor:
        """(Q,) group ids of the predictions, or means, that the term compares."""
        if self.cells is None or not self.one_each:
            return self.group_ids
        return self.cells.one_each(self.group_ids)

    @property
    def paired(self) -> Tensor:
        """(Q,) bool, the predictions that have a positive: in the batch, or in the memory."""
        if not self.targets:
            return is_paired(self.group_ids)
        known = [~each.isnan().flatten(1).all(dim=1) for each in self.targets.values()]
        return (self.compared_ids >= 0) & torch.stack(known).any(dim=0)

    @property
    def compared(self) -> Tensor:
        """(Q,) bool, the predictions that are compared, or whose mean is."""
        return self.paired if self.targets else is_paired(self.compared_ids)

    def only(self, rows: Tensor) -> 'Pairs':
        """Without the candidates where rows (Q,) bool are False."""
        return replace(self, group_ids=torch.where(rows, self.group_ids, UNPAIRED))

    def between_replicas(self, images: Tensor) -> 'Pairs':
        """What is left of the term between replicas: each prediction is its replica's mean."""
        return Pairs(self.group_ids, replica_cells(self.group_ids, images), one_each=False)


def form_pairs(
    batch: GatheredBatch, pairing: str, iou_threshold: float, alone: bool = False
) -> Pairs:
    """Forms the pairs among the candidates of a batch.

    Args:
        batch: Its columns are, for Q candidates, 'images' (Q,) int64 and 'may_pair' (Q,) bool.
            For 'iou' also 'restored' (Q, 4), boxes in pixels of their sources, and 'labels'
            (Q,) int64. For the others also 'instances' (Q, 2) int64, the source annotation of
            each, and for 'gt' and 'gt_score' also 'distances' (Q,), of which the smallest is
            taken. With 'unlabelled' (Q,) bool among the columns, those candidates are paired as
            with 'iou'.
        pairing: As in ``ConsistencyOptions``.
        iou_threshold: Likewise.
        alone: Whether an annotation needs only one replica in the batch: with a memory, the
            others are those of earlier epochs.
    """
    columns = batch.columns
    if pairing == 'iou':
        return Pairs(_overlapping(columns, batch.source_ids, iou_threshold))
    instances, may_pair = columns['instances'], columns['may_pair']
    if alone:
        group_ids = instance_groups(instances, may_pair)
    else:  # one annotation, in at least two replicas
        group_ids = groups_across_replicas(instances, columns['images'], may_pair)
    if 'unlabelled' in columns:
        group_ids = _with_unlabelled(group_ids, batch, iou_threshold)
    if pairing in ('gt', 'gt_score'):
        return Pairs(nearest_in_each_replica(group_ids, columns['images'], columns['distances']))
    if pairing == 'gt_mean':
        return Pairs(group_ids, replica_cells(group_ids, columns['images']))
    return Pairs(group_ids)  # gt_all


def _with_unlabelled(group_ids: Tensor, batch: GatheredBatch, iou_threshold: float) -> Tensor:
    """The group ids (Q,), with those of the predictions for unlabelled images."""
    rows = batch.columns['unlabelled'].nonzero()[:, 0]
    names = 'images', 'restored', 'labels', 'may_pair'
    columns = {name: batch.columns[name][rows] for name in names}
    own = _overlapping(columns, batch.source_ids, iou_threshold)
    # Those of annotations are below Q.
    own = torch.where(own >= 0, own + len(group_ids), UNPAIRED)
    return group_ids.index_copy(0, rows, own)


def _overlapping(columns: dict[str, Tensor], source_ids: list[int], iou_threshold: float) -> Tensor:
    """Restored boxes of one class that overlap, at most one of each replica in a group."""
    images: dict[int, list[int]] = {}
    for image, source in enumerate(source_ids):
        images.setdefault(source, []).append(image)
    members = pad_sequence(
        [torch.tensor(own) for own in images.values()], batch_first=True, padding_value=UNPAIRED
    )
    counts = columns['images'].bincount(minlength=len(source_ids)).tolist()
    boxes, labels, valid = (
        pad_sequence(columns[name].detach().split(counts), batch_first=True)
        for name in ('restored', 'labels', 'may_pair')
    )
    groups = iou_groups(boxes, labels, valid, members.to(boxes.device), iou_threshold)
    return torch.cat([own[:count] for own, count in zip(groups, counts)])
