"""Anchor heads that choose among the anchors that their assigner found.

PAA and LAD choose by the losses of the anchors, FSAF the level of an annotation, FreeAnchor and
AutoAssign softly among all that may see it, so that none of their predictions is a positive.
"""

from typing import Any

import torch
from mmdet.models.dense_heads import (
    AutoAssignHead,
    FreeAnchorRetinaHead,
    FSAFHead,
    LADHead,
    PAAHead,
)
from torch import Tensor

from lt_mm.models.heads.families.anchor_heads import AnchorConsistency, ATSSConsistency
from lt_mm.models.heads.families.dense_base import (
    Assigned,
    SoftConsistency,
    assigned_by_target,
    foreground,
)
from lt_mm.models.heads.families.point_heads import FCOSConsistency
from lt_mm.models.heads.head_families import register_head_family


@register_head_family(PAAHead)
class PAAConsistency(ATSSConsistency):
    """Mixin of PAA heads, which keep the anchors of small loss."""

    lt_reads = 'paa_reassign'
    lt_averages_positives = False

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        rows, annotations = arguments['pos_inds'], arguments['pos_gt_inds'].long()
        labels = targets[0][rows]
        kept = foreground(labels, self.num_classes)
        return Assigned(rows[kept], annotations[kept], len(kept))


@register_head_family(LADHead)
class LADConsistency(ATSSConsistency):
    """Mixin of LAD heads, whose positives are those of a teacher."""

    lt_splits_batches = False

    lt_reads = None
    lt_averages_positives = False

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        labels, _, boxes, *_ = arguments['label_assignment_results']
        gts = arguments['batch_gt_instances']
        found = []
        for image, (own_labels, own_boxes) in enumerate(
            zip(labels.chunk(len(gts)), boxes.chunk(len(gts)))
        ):
            rows = foreground(own_labels, self.num_classes)
            found.append(assigned_by_target(rows, own_boxes[rows], own_labels[rows], gts[image]))
        return found


@register_head_family(FSAFHead)
class FSAFConsistency(AnchorConsistency):
    """Mixin of FSAF heads, which keep the positives of one level of each annotation."""

    def reweight_loss_single(self, *args: Any, **kwargs: Any) -> tuple:
        result = super().reweight_loss_single(*args, **kwargs)
        self._lt_kept_of_levels.append(result[-1])
        return result

    def _lt_assigning(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Assigned]]:
        self._lt_kept_of_levels: list[Tensor] = []
        return super()._lt_assigning(arguments)

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        images = len(assigned)
        kept = torch.cat([level.reshape(images, -1) for level in self._lt_kept_of_levels], dim=1)
        return [
            Assigned(own.rows[keep], own.annotations[keep], float(keep.sum()))
            for own, keep in ((own, kept[image][own.rows]) for image, own in enumerate(assigned))
        ]


@register_head_family(FreeAnchorRetinaHead)
class FreeAnchorConsistency(SoftConsistency, AnchorConsistency):
    """Mixin of FreeAnchor heads."""


@register_head_family(AutoAssignHead)
class AutoAssignConsistency(SoftConsistency, FCOSConsistency):
    """Mixin of AutoAssign heads, whose distances are in pixels in training, too."""

    @property
    def lt_norm_on_bbox(self) -> bool:
        return False
