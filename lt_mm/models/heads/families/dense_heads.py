"""The consistency term on MMDetection's single-stage heads.

A dense head assigns its predictions inside ``_get_targets_single``, once an image.
The fronts note there which predictions became positives of which annotation, while
the stock ``loss_by_feat`` runs, and add the terms to its losses. One front a family of
heads tells how its targets and its boxes are laid out.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import (
    ATSSHead,
    DeformableDETRHead,
    DETRHead,
    DINOHead,
    FCOSHead,
    GFLHead,
    RetinaHead,
    RPNHead,
    SSDHead,
    YOLOXHead,
)
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from lt_mm.core.consistency import side_consistency
from lt_mm.core.geometry import side_positions_to_source
from lt_mm.core.pairing import annotation_of_target
from lt_mm.models.heads.detections import Candidates, DetectionConsistency, Detections
from lt_mm.models.heads.loss_transform_head import (
    ConsistencyOptions,
    add_consistency,
    register_wrap,
)
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.record import InstanceRecord, refuse_moved_image


@dataclass
class _Assigned:
    """The positives of one image, p in all.

    Attributes:
        rows: (p,) int64, predictions of the image.
        annotations: (p,) int64, the annotation of each.
        avg_factor: What the image adds to the normaliser of the stock loss.
    """

    rows: Tensor
    annotations: Tensor
    avg_factor: float


class DenseConsistency(DetectionConsistency):
    """Base of the fronts of dense heads.

    A family's front gives :meth:`_assigned`, :meth:`_class_logits` and :meth:`_decoder`.

    Attributes:
        lt_stock_averages: Whether the stock loss is divided by the mean number of
            positives over the ranks, rather than by this rank's.
    """

    lt_stock_averages = True
    _lt_noted: Any = None

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = inspect.signature(super().loss_by_feat).bind(*args, **kwargs).arguments
        for gt_instances, meta in zip(given['batch_gt_instances'], given['batch_img_metas']):
            InstanceRecord.read(gt_instances)
            refuse_moved_image(meta)
        noted = self._lt_noted = []
        try:
            losses = super().loss_by_feat(*args, **kwargs)
        finally:
            self._lt_noted = None
        self._add_terms(self._detections(given, self._of_final_prediction(noted, given)), losses)
        return losses

    def _get_targets_single(self, *args: Any, **kwargs: Any) -> tuple:
        targets = super()._get_targets_single(*args, **kwargs)
        if self._lt_noted is not None:
            bound = inspect.signature(super()._get_targets_single).bind(*args, **kwargs)
            self._lt_noted.append(self._assigned(targets, bound.arguments))
        return targets

    def _of_final_prediction(
        self, noted: list[_Assigned], given: dict[str, Any]
    ) -> list[_Assigned]:
        """Of all that was noted, the images of the prediction that is compared."""
        return noted

    def _detections(self, given: dict[str, Any], assigned: list[_Assigned]) -> Detections:
        logits = self._class_logits(given)
        return Detections(
            logits=logits.flatten(0, 1),
            decode=self._decoder(given),
            counts=[logits.shape[1]] * len(logits),
            records=given['batch_gt_instances'],
            positives=[image.rows for image in assigned],
            annotations=[image.annotations for image in assigned],
            sigmoid=self._is_sigmoid(),
            avg_factor=self._avg_factor(sum(image.avg_factor for image in assigned), logits.device),
        )

    def _avg_factor(self, num_positives: float, device: torch.device) -> float:
        """N of the formula: the mean over the ranks, where the stock loss takes it."""
        if self.lt_stock_averages:
            num_positives = reduce_mean(torch.tensor(float(num_positives), device=device)).item()
        return max(num_positives, 1)

    def _is_sigmoid(self) -> bool:
        return bool(self.loss_cls.use_sigmoid)

    def _assigned(self, targets: tuple, given: dict[str, Any]) -> _Assigned:
        """The positives of an image.

        Args:
            targets: What ``_get_targets_single`` returned.
            given: Its arguments by name.
        """
        raise NotImplementedError

    def _class_logits(self, given: dict[str, Any]) -> Tensor:
        """(B, n, C) class logits, from the arguments of ``loss_by_feat``."""
        return _flatten(given['cls_scores'], self.cls_out_channels)

    def _decoder(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """Function of rows (P,) of all B * n predictions and labels; gives (P, 4) boxes."""
        raise NotImplementedError


class AnchorConsistency(DenseConsistency):
    """Front of heads on anchors: RetinaNet, SSD, RPN."""

    lt_stock_averages = False

    def _assigned(self, targets: tuple, given: dict[str, Any]) -> _Assigned:
        # ATSS and its descendants return the anchors before the labels.
        labels = next(target for target in targets if target.dim() == 1)
        sampled = next(target for target in targets if isinstance(target, SamplingResult))
        # The sampler counts the anchors inside the image alone, in the same order.
        rows = _foreground(labels, self.num_classes)
        return _Assigned(rows, sampled.pos_assigned_gt_inds.long(), sampled.avg_factor)

    def _is_sigmoid(self) -> bool:
        return bool(self.use_sigmoid_cls)

    def _anchors(self, given: dict[str, Any]) -> Tensor:
        """(n, 4) anchors of all levels, the same for every image; pixels."""
        return torch.cat(
            self.prior_generator.grid_priors(
                [scores.shape[-2:] for scores in given['cls_scores']],
                device=given['cls_scores'][0].device,
            )
        )

    def _decoder(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        anchors = self._anchors(given)
        deltas = _flatten(given['bbox_preds'], self.bbox_coder.encode_size).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self.bbox_coder.decode(anchors[rows % len(anchors)], deltas[rows].float())

        return decode


class ATSSConsistency(AnchorConsistency):
    """Front of ATSS heads."""

    lt_stock_averages = True


class RPNConsistency(AnchorConsistency):
    """Front of a region proposal network; its keys carry ``rpn``, as the stock ones.

    Below the same detector, the RoI head logs under the same names.
    """

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        losses = super().loss_by_feat(*args, **kwargs)
        return {
            key.replace('lt_', 'rpn_lt_', 1) if 'lt_' in key else key: value
            for key, value in losses.items()
        }


@dataclass
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


class GFLConsistency(ATSSConsistency):
    """Front of GFL heads, whose box term is the KL of their side distributions."""

    def _detections(self, given: dict[str, Any], assigned: list[_Assigned]) -> Detections:
        centers, strides, side_logits = self._side_distributions(given)
        return _SideDetections(
            **vars(super()._detections(given, assigned)),
            centers=centers,
            strides=strides,
            side_logits=side_logits,
        )

    def _side_distributions(self, given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """What :class:`_SideDetections` has more than others."""
        side_logits = _flatten(given['bbox_preds'], 4 * (self.reg_max + 1))
        return (
            self.anchor_center(self._anchors(given)),
            _strides(self.prior_generator, given['bbox_preds']),
            side_logits.flatten(0, 1),
        )

    def _decoder(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        centers, strides, side_logits = self._side_distributions(given)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            points = rows % len(centers)
            distances = self.integral(side_logits[rows].float()) * strides[points, None]
            return self.bbox_coder.decode(centers[points], distances)

        return decode

    def _box_term(self, detections: _SideDetections, candidates: Candidates) -> Tensor:
        points = candidates.rows % len(detections.centers)
        distances = detections.strides[points, None] * self.integral.project
        positions, sides = side_positions_to_source(
            detections.centers[points], distances, candidates.matrices
        )
        in_replica = detections.side_logits[candidates.rows].unflatten(1, (4, -1))
        in_source = in_replica.gather(1, sides[..., None].expand_as(in_replica))
        return side_consistency(
            candidates.ranks.join(in_source),
            candidates.ranks.join(positions),
            self._exact_groups(candidates),
            detach_mean=self.lt_options.detach_mean,
            avg_factor=detections.avg_factor,
        )


class FCOSConsistency(DenseConsistency):
    """Front of FCOS heads, which assign points to annotations without an assigner."""

    def _assigned(self, targets: tuple, given: dict[str, Any]) -> _Assigned:
        labels, distances = targets
        rows = _foreground(labels, self.num_classes)
        boxes = self.bbox_coder.decode(given['points'][rows], distances[rows])
        return _traced(rows, boxes, labels[rows], given['gt_instances'])

    def _decoder(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        points = torch.cat(
            self.prior_generator.grid_priors(
                [scores.shape[-2:] for scores in given['cls_scores']],
                device=given['cls_scores'][0].device,
            )
        )
        distances = _flatten(given['bbox_preds'], 4).flatten(0, 1)
        strides = _strides(self.prior_generator, given['bbox_preds'])

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            point, distance = rows % len(points), distances[rows].float()
            if self.norm_on_bbox:  # in training the distances count in strides
                distance = distance * strides[point, None]
            return self.bbox_coder.decode(points[point], distance)

        return decode


class YOLOXConsistency(DenseConsistency):
    """Front of YOLOX heads."""

    def _assigned(self, targets: tuple, given: dict[str, Any]) -> _Assigned:
        foreground, class_targets, _, boxes, _, _ = targets
        return _traced(
            foreground.nonzero().squeeze(1), boxes, class_targets.argmax(1), given['gt_instances']
        )

    def _decoder(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        priors = torch.cat(
            self.prior_generator.grid_priors(
                [scores.shape[-2:] for scores in given['cls_scores']],
                device=given['cls_scores'][0].device,
                with_stride=True,
            )
        )
        predicted = _flatten(given['bbox_preds'], 4).flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self._bbox_decode(priors[rows % len(priors)], predicted[rows].float())

        return decode


class DETRConsistency(DenseConsistency):
    """Front of DETR-like heads: the matched queries of the last decoder layer."""

    def _assigned(self, targets: tuple, given: dict[str, Any]) -> _Assigned:
        labels, _, boxes, _, rows, _ = targets
        targets_xyxy = bbox_cxcywh_to_xyxy(boxes[rows]) * _sides(given['img_meta'], boxes)
        return _traced(rows, targets_xyxy, labels[rows], given['gt_instances'])

    def _of_final_prediction(
        self, noted: list[_Assigned], given: dict[str, Any]
    ) -> list[_Assigned]:
        # Layer after layer; what the encoder's proposals were matched to comes last.
        images = len(given['batch_img_metas'])
        last = (len(given['all_layers_cls_scores']) - 1) * images
        return noted[last : last + images]

    def _class_logits(self, given: dict[str, Any]) -> Tensor:
        return self._matching(given, given['all_layers_cls_scores'])

    def _decoder(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        predicted = self._matching(given, given['all_layers_bbox_preds'])
        sides = torch.stack([_sides(meta, predicted) for meta in given['batch_img_metas']])
        queries, predicted = predicted.shape[1], predicted.flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            boxes = bbox_cxcywh_to_xyxy(predicted[rows].float())
            return boxes * sides[rows // queries]

        return decode

    def _matching(self, given: dict[str, Any], all_layers: Tensor) -> Tensor:
        """(B, n, ...) of the last layer, without DINO's denoising queries."""
        denoising = given.get('dn_meta') or {}
        return all_layers[-1][:, denoising.get('num_denoising_queries', 0) :]


def _flatten(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Maps (B, A * channels, H, W) of all levels, as (B, n, channels)."""
    return torch.cat(
        [level.permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in levels], dim=1
    )


def _strides(prior_generator: Any, levels: Sequence[Tensor]) -> Tensor:
    """(n,) stride in pixels of each point of all levels, one prior a point."""
    return torch.cat(
        [
            level.new_full((level[0, 0].numel(),), stride[0], dtype=torch.float32)
            for level, stride in zip(levels, prior_generator.strides)
        ]
    )


def _foreground(labels: Tensor, num_classes: int) -> Tensor:
    """Rows of the positives among the labels (n,) of an image."""
    return ((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)


def _sides(meta: dict[str, Any], like: Tensor) -> Tensor:
    """(4,) width, height, width, height of an image in pixels."""
    height, width = meta['img_shape'][:2]
    return like.new_tensor([width, height, width, height], dtype=torch.float32)


def _traced(rows: Tensor, boxes: Tensor, labels: Tensor, gt_instances: InstanceData) -> _Assigned:
    """Positives whose annotation is found by the box they are to reach."""
    annotations = annotation_of_target(boxes, labels, gt_instances.bboxes, gt_instances.labels)
    return _Assigned(rows, annotations, len(rows))


# Fronts, the class whose assignment the front reads, and the classes whose loss it
# may stand before: a head that computes its loss in another way may lay out its
# predictions in another way too.
_FAMILIES: list[tuple[type, type, tuple[type, ...]]] = [
    (DETRConsistency, DETRHead, (DETRHead, DeformableDETRHead, DINOHead)),
    (YOLOXConsistency, YOLOXHead, (YOLOXHead,)),
    (FCOSConsistency, FCOSHead, (FCOSHead,)),
    (GFLConsistency, GFLHead, (GFLHead,)),
    (ATSSConsistency, ATSSHead, (ATSSHead,)),
    (RPNConsistency, RPNHead, (RPNHead,)),
    (AnchorConsistency, AnchorHead, (RetinaHead, SSDHead)),
]


def _applies(head: nn.Module) -> bool:
    return any(isinstance(head, base) for _, base, _ in _FAMILIES)


def _wrap(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    front, _, known = next(family for family in _FAMILIES if isinstance(head, family[1]))
    cls = type(head)
    alike = [
        other
        for other in known
        if cls.loss_by_feat is other.loss_by_feat
        and cls._get_targets_single is other._get_targets_single
        and getattr(cls, 'loss_by_feat_single', None) is getattr(other, 'loss_by_feat_single', None)
    ]
    if not alike:
        raise UnsupportedHeadError(
            f'{cls.__name__} computes its loss or its targets in a way of its own, so '
            'its predictions cannot be grouped by instance; expected '
            f'{", ".join(other.__name__ for other in known)} or a subclass that keeps '
            'loss_by_feat, loss_by_feat_single and _get_targets_single. Leave this head '
            f"as it is: bbox_head=dict(type='{cls.__name__}', ...)"
        )
    return add_consistency(front, head, options)


register_wrap(_applies, _wrap)
