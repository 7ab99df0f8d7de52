"""Heads on anchors: RetinaNet, SSD, RPN, ATSS and GFL."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, ATSSHead, GFLHead, RetinaHead, RPNHead, SSDHead
from torch import Tensor

from lt_mm.core.consistency import compared_sides, side_consistency
from lt_mm.core.geometry import side_positions_to_source
from lt_mm.models.heads.candidates import Candidates, Detections
from lt_mm.models.heads.families.dense_base import (
    Assigned,
    DenseConsistency,
    flatten_levels,
    foreground,
    strides_of,
)
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.models.heads.pairing import Pairs


@register_head_family(AnchorHead, RetinaHead, SSDHead)
class AnchorConsistency(DenseConsistency):
    """Mixin of heads whose assigner works on anchors.

    Attributes:
        lt_place_of_labels: Place of the labels in what ``_get_targets_single`` returns; the
            sampling result comes six places later.
    """

    lt_averages_positives = False
    lt_place_of_labels = 0

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        labels, sampled = targets[self.lt_place_of_labels], targets[self.lt_place_of_labels + 6]
        # The sampler counts the anchors inside the image alone, in the same order.
        rows = foreground(labels, self.num_classes)
        return Assigned(rows, sampled.pos_assigned_gt_inds.long(), sampled.avg_factor)

    def lt_is_sigmoid(self) -> bool:
        return bool(self.use_sigmoid_cls)

    def lt_anchors(self, arguments: dict[str, Any]) -> Tensor:
        """(n, 4) anchors of all levels, the same for every image; pixels."""
        scores = arguments['cls_scores']
        return torch.cat(
            self.prior_generator.grid_priors(
                [level.shape[-2:] for level in scores], device=scores[0].device
            )
        )

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        anchors = self.lt_anchors(arguments)
        deltas = flatten_levels(arguments['bbox_preds'], self.bbox_coder.encode_size)
        deltas = deltas.flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self.bbox_coder.decode(anchors[rows % len(anchors)], deltas[rows].float())

        return decode


@register_head_family(RPNHead)
class RPNConsistency(AnchorConsistency):
    """Mixin of a region proposal network; its keys carry ``rpn``, as the stock ones.

    Below the same detector, the RoI head logs under the same names.
    """

    lt_key_prefix = 'rpn_'


@register_head_family(ATSSHead)
class ATSSConsistency(AnchorConsistency):
    """Mixin of ATSS heads, whose targets begin with the anchors."""

    lt_averages_positives = True
    lt_place_of_labels = 1


@dataclass(kw_only=True)
class _SideDetections(Detections):
    """Detections whose box sides are distributions.

    Attributes:
        centers: (n, 2) the points of an image; pixels.
        strides: (n,) their strides; pixels.
        side_logits: (N, 4 * K), how far each side is from the point, in strides.
    """

    centers: Tensor
    strides: Tensor
    side_logits: Tensor


@register_head_family(GFLHead)
class GFLConsistency(ATSSConsistency):
    """Mixin of GFL heads, whose box term is the KL of their side distributions.

    With a memory it is that of the boxes, as of all other heads.
    """

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        centers, strides, side_logits = self._lt_side_distributions(arguments)
        return _SideDetections(
            **vars(super().lt_detections(assigned, arguments)),
            centers=centers,
            strides=strides,
            side_logits=side_logits,
        )

    def _lt_side_distributions(self, arguments: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """What :class:`_SideDetections` has beside :class:`Detections`."""
        side_logits = flatten_levels(arguments['bbox_preds'], 4 * (self.reg_max + 1))
        return (
            self.anchor_center(self.lt_anchors(arguments)),
            strides_of(self.prior_generator, arguments['bbox_preds']),
            side_logits.flatten(0, 1),
        )

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        centers, strides, side_logits = self._lt_side_distributions(arguments)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            points = rows % len(centers)
            distances = self.integral(side_logits[rows].float()) * strides[points, None]
            return self.bbox_coder.decode(centers[points], distances)

        return decode

    def lt_box_columns(self, detections: Any, candidates: Candidates) -> dict[str, Tensor]:
        points = candidates.rows % len(detections.centers)
        distances = detections.strides[points, None] * self.integral.project
        positions, sides = side_positions_to_source(
            detections.centers[points], distances, candidates.matrices
        )
        in_replica = detections.side_logits[candidates.rows].unflatten(1, (4, -1))
        in_source = in_replica.gather(1, sides[..., None].expand_as(in_replica))
        return dict(side_logits=in_source, side_positions=positions)

    def lt_compared_sides(self, pairs: Pairs, whole_sides: Tensor) -> Tensor:
        if pairs.targets:
            return super().lt_compared_sides(pairs, whole_sides)
        return compared_sides(pairs.compared_ids, whole_sides)

    def lt_box_term(self, columns: dict[str, Tensor], pairs: Pairs, avg_factor: float) -> Tensor:
        if pairs.targets:  # a memory keeps boxes, not distributions
            return super().lt_box_term(columns, pairs, avg_factor)
        return side_consistency(
            columns['side_logits'],
            columns['side_positions'],
            pairs.group_ids,
            detach_mean=self.lt_options.detach_mean,
            avg_factor=avg_factor,
            whole_sides=columns['whole_sides'],
            cells=pairs.cells,
            compared_ids=pairs.compared_ids,
        )
