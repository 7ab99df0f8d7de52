"""Heads on points: FCOS, YOLOX and RTMDet."""

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.dense_heads import FCOSHead, RTMDetHead, YOLOXHead
from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from lt_mm.models.heads.detections import Detections
from lt_mm.models.heads.families.anchor_heads import ATSSConsistency
from lt_mm.models.heads.families.dense_base import (
    Assigned,
    DenseConsistency,
    assigned_by_target,
    flatten_levels,
    foreground,
    strides_of,
)
from lt_mm.models.heads.head_families import register_head_family

# Of soft labels that are all 0; the stock box loss is 0 then too.
_SMALLEST_WEIGHT = 1e-6


@register_head_family(FCOSHead)
class FCOSConsistency(DenseConsistency):
    """Mixin of FCOS heads, which assign points to annotations without an assigner."""

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        labels, distances = targets
        rows = foreground(labels, self.num_classes)
        boxes = self.bbox_coder.decode(arguments['points'][rows], distances[rows])
        return assigned_by_target(rows, boxes, labels[rows], arguments['gt_instances'])

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        points = _priors(self.prior_generator, arguments['cls_scores'])
        distances = flatten_levels(arguments['bbox_preds'], 4).flatten(0, 1)
        strides = strides_of(self.prior_generator, arguments['bbox_preds'])

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            point, distance = rows % len(points), distances[rows].float()
            if self.norm_on_bbox:  # in training the distances count in strides
                distance = distance * strides[point, None]
            return self.bbox_coder.decode(points[point], distance)

        return decode


@register_head_family(YOLOXHead)
class YOLOXConsistency(DenseConsistency):
    """Mixin of YOLOX heads."""

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        positive, class_targets, _, boxes, _, _ = targets
        rows, labels = positive.nonzero().squeeze(1), class_targets.argmax(1)
        return assigned_by_target(rows, boxes, labels, arguments['gt_instances'])

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        priors = _priors(self.prior_generator, arguments['cls_scores'], with_stride=True)
        predicted = flatten_levels(arguments['bbox_preds'], 4).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self._bbox_decode(priors[rows % len(priors)], predicted[rows].float())

        return decode


@register_head_family(RTMDetHead)
class RTMDetConsistency(ATSSConsistency):
    """Mixin of RTMDet heads, whose targets are laid out as those of ATSS.

    The stock losses weigh a positive by its soft label, and are divided by the sum of these, or by
    1 if it is smaller. The terms weigh all positives as these labels do on average.
    """

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        _, labels, _, _, metrics, sampled = targets
        rows = foreground(labels, self.num_classes)
        return Assigned(rows, sampled.pos_assigned_gt_inds.long(), float(metrics.sum()))

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        detections = super().lt_detections(assigned, arguments)
        count = sum(len(image.rows) for image in assigned)
        weights = sum(image.avg_factor for image in assigned)
        if count:
            detections.avg_factor *= count / max(weights, _SMALLEST_WEIGHT)
        return detections

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        points = _priors(self.prior_generator, arguments['cls_scores'])
        distances = flatten_levels(arguments['bbox_preds'], 4).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return distance2bbox(points[rows % len(points)], distances[rows].float())

        return decode


def _priors(prior_generator: Any, levels: list[Tensor], **options: Any) -> Tensor:
    """(n, 2) or (n, 4) points of all levels, the same for every image; pixels."""
    sizes = [level.shape[-2:] for level in levels]
    return torch.cat(prior_generator.grid_priors(sizes, device=levels[0].device, **options))
