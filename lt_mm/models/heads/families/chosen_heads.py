"""Heads that choose what an assigner found, or do without one.

PAA and LAD choose by the losses of the anchors, FSAF the level of an annotation, FreeAnchor and
AutoAssign softly among all that may see it, so that none of their predictions is a positive.
CenterNet has one prediction for each annotation, at its centre.
"""

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.dense_heads import (
    AutoAssignHead,
    CenterNetHead,
    FreeAnchorRetinaHead,
    FSAFHead,
    LADHead,
    PAAHead,
)
from torch import Tensor

from lt_mm.core.consistency import logits_of
from lt_mm.models.heads.families.anchor_heads import AnchorConsistency, ATSSConsistency
from lt_mm.models.heads.families.dense_base import (
    Assigned,
    DenseConsistency,
    SoftConsistency,
    assigned_by_target,
    flatten_levels,
    foreground,
    widened,
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

    def lt_joint_scores(self, scores: Tensor, factors: Tensor) -> Tensor:
        return (scores * factors).sqrt()


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

    def lt_joint_scores(self, scores: Tensor, factors: Tensor) -> Tensor:
        return (scores * factors).sqrt()


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


@register_head_family(CenterNetHead)
class CenterNetConsistency(DenseConsistency):
    """Mixin of CenterNet heads, whose class scores are probabilities.

    Boxes, which begin without size, count as at least one cell wide and high.
    """

    lt_reads = None
    lt_averages_positives = False

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        width = arguments['center_heatmap_preds'][0].shape[-1]
        sides = self._lt_cell_sides(arguments)
        found = []
        for gt_instances in arguments['batch_gt_instances']:
            boxes = gt_instances.bboxes
            x, y = ((boxes[:, :2] + boxes[:, 2:]) / sides / 2).long().unbind(dim=1)
            rows = y * width + x
            peaks = torch.unique(torch.stack([rows, gt_instances.labels]), dim=1)
            annotations = torch.arange(len(rows), device=rows.device)
            found.append(Assigned(rows, annotations, peaks.shape[1]))
        return found

    def lt_is_sigmoid(self) -> bool:
        return True

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return logits_of(flatten_levels(arguments['center_heatmap_preds'], self.num_classes))

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        height, width = arguments['wh_preds'][0].shape[-2:]
        sides = self._lt_cell_sides(arguments)
        sizes, offsets = (
            flatten_levels(arguments[name], 2).flatten(0, 1)
            for name in ('wh_preds', 'offset_preds')
        )

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            cells = rows % (height * width)
            corners = torch.stack([cells % width, cells // width], dim=1)
            centres, halves = corners + offsets[rows].float(), sizes[rows].float() / 2
            boxes = torch.cat([centres - halves, centres + halves], dim=1)
            return widened(boxes, torch.ones_like(boxes[:, 0])) * sides.repeat(2)

        return decode

    def _lt_cell_sides(self, arguments: dict[str, Any]) -> Tensor:
        """(2,) width and height of a cell of the map; pixels."""
        level = arguments['wh_preds'][0]
        height, width = arguments['batch_img_metas'][0]['batch_input_shape'][:2]
        return level.new_tensor(
            [width / level.shape[-1], height / level.shape[-2]], dtype=torch.float32
        )
