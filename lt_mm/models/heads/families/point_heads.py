"""Heads on points: FCOS and its likes, YOLOX, RepPoints, and those with soft labels."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.dense_heads import (
    BoxInstBboxHead,
    CenterNetUpdateHead,
    CondInstBboxHead,
    FCOSHead,
    FoveaHead,
    RepPointsHead,
    RTMDetHead,
    RTMDetInsHead,
    TOODHead,
    VFNetHead,
    YOLOXHead,
)
from mmdet.structures.bbox import distance2bbox
from mmdet.utils import reduce_mean
from torch import Tensor

from lt_mm.core.consistency import logits_of
from lt_mm.models.heads.candidates import Detections
from lt_mm.models.heads.families.anchor_heads import ATSSConsistency
from lt_mm.models.heads.families.dense_base import (
    Assigned,
    DenseConsistency,
    assigned_by_target,
    flatten_levels,
    foreground,
    strides_of,
    widened,
)
from lt_mm.models.heads.head_families import register_head_family

# Of soft labels that are all 0; the stock box loss is 0 then too.
_SMALLEST_WEIGHT = 1e-6


@register_head_family(FCOSHead)
class FCOSConsistency(DenseConsistency):
    """Mixin of FCOS heads, which assign points to annotations without an assigner."""

    @property
    def lt_norm_on_bbox(self) -> bool:
        return bool(self.norm_on_bbox)

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
            if self.lt_norm_on_bbox:  # in training the distances count in strides
                distance = distance * strides[point, None]
            return self.bbox_coder.decode(points[point], distance)

        return decode


@register_head_family(CondInstBboxHead, BoxInstBboxHead)
class CondInstConsistency(FCOSConsistency):
    """Mixin of the box heads of CondInst and BoxInst."""

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        _, _, rows, annotations = targets
        return Assigned(rows, annotations, len(rows))


@register_head_family(CenterNetUpdateHead)
class CenterNetUpdateConsistency(FCOSConsistency):
    """Mixin of CenterNet heads with several levels; compared are the positives of the boxes.

    Boxes, which begin without size, count as at least one stride wide and high.
    """

    @property
    def lt_norm_on_bbox(self) -> bool:
        return True

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        heat, distances = targets
        rows = (distances.amax(dim=1) >= 0).nonzero()[:, 0]
        distances = distances[rows] * arguments['strides'][rows, None]
        boxes = self.bbox_coder.decode(arguments['points'][rows], distances)
        labels = heat[rows].argmax(dim=1)
        return assigned_by_target(rows, boxes, labels, arguments['gt_instances'])

    def lt_is_sigmoid(self) -> bool:
        return True

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        decode = super().lt_box_decoder(arguments)
        strides = strides_of(self.prior_generator, arguments['bbox_preds'])
        return lambda rows, labels: widened(decode(rows, labels), strides[rows % len(strides)])


@register_head_family(FoveaHead)
class FoveaConsistency(DenseConsistency):
    """Mixin of FoveaBox heads."""

    lt_averages_positives = False

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        labels = torch.cat([level.flatten() for level in targets[0]])
        logarithms = torch.cat([level.flatten(0, 1) for level in targets[1]])
        rows = foreground(labels, self.num_classes)
        points = torch.cat(list(arguments['priors_list']))
        boxes = self._lt_boxes(points[rows], logarithms[rows], self._lt_bases(targets[0])[rows])
        found = assigned_by_target(rows, boxes, labels[rows], arguments['gt_instances'])
        found.avg_factor += 1  # the stock class loss counts the image, too
        return found

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        points = _priors(self.prior_generator, arguments['cls_scores'])
        predicted = flatten_levels(arguments['bbox_preds'], 4).flatten(0, 1)
        bases = self._lt_bases([level[0, 0] for level in arguments['bbox_preds']])

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            point = rows % len(points)
            return self._lt_boxes(points[point], predicted[rows].float(), bases[point])

        return decode

    def _lt_bases(self, levels: list[Tensor]) -> Tensor:
        """(n,) the length that the distances of each point are relative to; pixels."""
        return torch.cat(
            [
                torch.full((level.numel(),), float(base), device=level.device)
                for level, base in zip(levels, self.base_edge_list)
            ]
        )

    def _lt_boxes(self, points: Tensor, logarithms: Tensor, bases: Tensor) -> Tensor:
        return distance2bbox(points, logarithms.exp() * bases[:, None])


@register_head_family(RepPointsHead)
class RepPointsConsistency(DenseConsistency):
    """Mixin of RepPoints heads; compared are the refined points, by the boxes around them.

    All points begin in one place. Boxes count as at least half as wide and high as the objects of
    their level, by whose size the stock losses measure.
    """

    lt_averages_positives = False

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        labels, sampled = targets[0], targets[7]
        rows = foreground(labels, self.num_classes)
        return Assigned(rows, sampled.pos_assigned_gt_inds.long(), sampled.avg_factor)

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        return assigned[-len(arguments['batch_img_metas']) :]  # the first stage comes before

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        levels = arguments['pts_preds_refine']
        points = _priors(self.prior_generator, levels)
        strides = strides_of(self.prior_generator, levels)
        shapes = flatten_levels(levels, 2 * self.num_points).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            if not len(rows):  # the stock function cannot take it
                return shapes[rows, :4]
            point = rows % len(points)
            boxes = self.points2bbox(shapes[rows].float())
            boxes = boxes * strides[point, None] + points[point].repeat(1, 2)
            return widened(boxes, strides[point] * self.point_base_scale / 2)

        return decode


@register_head_family(VFNetHead)
class VFNetConsistency(ATSSConsistency):
    """Mixin of VFNet heads, whose boxes are the refined ones."""

    def lt_assigned(self, targets: Any, arguments: dict[str, Any]) -> Assigned | list[Assigned]:
        if self.use_atss:
            return super().lt_assigned(targets, arguments)
        signature = inspect.signature(FCOSHead._get_targets_single)
        own = signature.bind(self, *arguments['args'], **arguments['kwargs'])
        return FCOSConsistency.lt_assigned(self, targets, own.arguments)

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        points = _priors(self.fcos_prior_generator, arguments['cls_scores'])
        distances = flatten_levels(arguments['bbox_preds_refine'], 4).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self.bbox_coder.decode(points[rows % len(points)], distances[rows].float())

        return decode


@register_head_family(YOLOXHead)
class YOLOXConsistency(DenseConsistency):
    """Mixin of YOLOX heads."""

    lt_objectness_loss = 'loss_obj'

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        positive, class_targets, _, boxes, _, _ = targets
        rows, labels = positive.nonzero().squeeze(1), class_targets.argmax(1)
        return assigned_by_target(rows, boxes, labels, arguments['gt_instances'])

    def lt_objectness(self, arguments: dict[str, Any]) -> Tensor:
        return flatten_levels(arguments['objectnesses'], 1).squeeze(2)

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        priors = _priors(self.prior_generator, arguments['cls_scores'], with_stride=True)
        predicted = flatten_levels(arguments['bbox_preds'], 4).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self._bbox_decode(priors[rows % len(priors)], predicted[rows].float())

        return decode


class _SoftLabelConsistency(ATSSConsistency):
    """Mixin of heads whose losses weigh a positive by its soft label.

    They are divided by the sum of these labels, or by 1 if it is smaller. The terms weigh all
    positives as these labels do on average.
    """

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        detections = super().lt_detections(assigned, arguments)
        sums = [
            sum(len(image.rows) for image in assigned),
            sum(image.avg_factor for image in assigned),
        ]
        count, weight = reduce_mean(arguments['cls_scores'][0].new_tensor(sums)).tolist()
        if count:
            detections.avg_factor *= count / max(weight, _SMALLEST_WEIGHT)
        return detections


@register_head_family(TOODHead)
class TOODConsistency(_SoftLabelConsistency):
    """Mixin of TOOD heads, whose class scores are probabilities and whose boxes are decoded."""

    lt_reads = 'get_targets'

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> list[Assigned]:
        labels, boxes, metrics = (
            torch.cat(levels, dim=1) for levels in (targets[1], targets[3], targets[4])
        )
        found = []
        for image, gt_instances in enumerate(arguments['batch_gt_instances']):
            rows = foreground(labels[image], self.num_classes)
            positives = boxes[image, rows], labels[image, rows]
            found.append(assigned_by_target(rows, *positives, gt_instances))
            found[-1].avg_factor = float(metrics[image].sum())
        return found

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return logits_of(super().lt_class_logits(arguments))

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        boxes = flatten_levels(arguments['bbox_preds'], 4).flatten(0, 1)
        strides = strides_of(self.prior_generator, arguments['bbox_preds'])

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return boxes[rows].float() * strides[rows % len(strides), None]

        return decode


@register_head_family(RTMDetHead, RTMDetInsHead)
class RTMDetConsistency(_SoftLabelConsistency):
    """Mixin of RTMDet heads, whose targets are laid out as those of ATSS."""

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        _, labels, _, _, metrics, sampled = targets
        rows = foreground(labels, self.num_classes)
        return Assigned(rows, sampled.pos_assigned_gt_inds.long(), float(metrics.sum()))

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
