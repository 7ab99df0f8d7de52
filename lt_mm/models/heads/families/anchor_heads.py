"""Heads on anchors: RetinaNet and its likes, ATSS, GFL and YOLOv3."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads import (
    AnchorHead,
    ATSSHead,
    DDODHead,
    GARetinaHead,
    GARPNHead,
    GFLHead,
    LDHead,
    PISARetinaHead,
    PISASSDHead,
    RetinaHead,
    RPNHead,
    SABLRetinaHead,
    SSDHead,
    YOLACTHead,
    YOLOFHead,
    YOLOV3Head,
)
from torch import Tensor, nn

from lt_mm.core.consistency import compared_sides, side_consistency
from lt_mm.core.geometry import side_positions_to_source
from lt_mm.models.heads.candidates import Candidates, Detections
from lt_mm.models.heads.families.dense_base import (
    Assigned,
    DenseConsistency,
    assigned_by_target,
    flatten_levels,
    foreground,
    strides_of,
)
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.models.heads.pairing import Pairs
from lt_mm.structures.errors import UnsupportedHeadError


@register_head_family(AnchorHead, RetinaHead, PISARetinaHead, YOLACTHead)
class AnchorConsistency(DenseConsistency):
    """Mixin of heads whose assigner works on anchors.

    Attributes:
        lt_place_of_labels: Place of the labels in what ``_get_targets_single`` returns.
        lt_place_of_samples: Place of the sampling result.
    """

    lt_averages_positives = False
    lt_place_of_labels = 0
    lt_place_of_samples = 6

    def lt_assigned(self, targets: Any, arguments: dict[str, Any]) -> Assigned | list[Assigned]:
        labels, sampled = targets[self.lt_place_of_labels], targets[self.lt_place_of_samples]
        # The sampler counts the anchors inside the image alone, in the same order.
        rows = foreground(labels, self.num_classes)
        return Assigned(rows, sampled.pos_assigned_gt_inds.long(), sampled.avg_factor)

    def lt_is_sigmoid(self) -> bool:
        return bool(self.use_sigmoid_cls)

    def lt_anchors(self, arguments: dict[str, Any]) -> Tensor:
        """(n, 4) anchors of all levels, the same for every image, or (B * n, 4); pixels."""
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


@register_head_family(SSDHead, PISASSDHead)
class SSDConsistency(AnchorConsistency):
    """Mixin of SSD heads.

    MMDetection 3.2 and later asks a head for its ``loss_cls`` when it predicts, and an SSD head has
    none: the stock one cannot predict. This one can.
    """

    @classmethod
    def lt_add(cls, head: Any, options: ConsistencyOptions) -> nn.Module:
        head.loss_cls = None
        return super().lt_add(head, options)


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
    lt_place_of_samples = 7


@register_head_family(DDODHead)
class DDODConsistency(ATSSConsistency):
    """Mixin of DDOD heads; compared are the positives of the classes, not those of the boxes."""

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        return assigned[: len(arguments['batch_img_metas'])]


@register_head_family(YOLOFHead)
class YOLOFConsistency(AnchorConsistency):
    """Mixin of YOLOF heads, whose targets are those of the classes alone."""

    lt_averages_positives = True
    lt_place_of_samples = 4


@register_head_family(YOLOV3Head)
class YOLOv3Consistency(AnchorConsistency):
    """Mixin of YOLOv3 heads, whose losses are sums, not means."""

    lt_objectness_loss = 'loss_conf'

    @classmethod
    def lt_check(cls, head: Any) -> None:
        super().lt_check(head)
        if head.loss_cls.reduction != 'sum':
            raise UnsupportedHeadError(
                f'loss_cls of {type(head).__name__} has the reduction {head.loss_cls.reduction!r}, '
                "which averages over all predictions of a level; expected reduction='sum'"
            )

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        wanted, _ = targets
        anchors, strides = self._lt_anchors_and_strides(arguments['anchors'])
        rows = (wanted[:, 4] == 1).nonzero()[:, 0]
        boxes = self.bbox_coder.decode(anchors[rows], wanted[rows, :4], strides[rows, None])
        labels = wanted[rows, 5:].argmax(dim=1)
        return assigned_by_target(rows, boxes, labels, arguments['gt_instances'])

    def _lt_avg_factor(self, num_positives: float, device: torch.device) -> float:
        return 1.0  # however many images the stock loss sees

    def lt_is_sigmoid(self) -> bool:
        return True

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return flatten_levels(arguments['pred_maps'], self.num_attrib)[..., 5:]

    def lt_score_factors(self, arguments: dict[str, Any]) -> Tensor:
        return self.lt_objectness(arguments).sigmoid()

    def lt_objectness(self, arguments: dict[str, Any]) -> Tensor:
        return flatten_levels(arguments['pred_maps'], self.num_attrib)[..., 4]

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        maps = arguments['pred_maps']
        sizes = [level.shape[-2:] for level in maps]
        anchors, strides = self._lt_anchors_and_strides(
            self.prior_generator.grid_priors(sizes, device=maps[0].device)
        )
        predicted = flatten_levels(maps, self.num_attrib)[..., :4].flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            anchor, own = rows % len(anchors), predicted[rows].float()
            own = torch.cat([own[:, :2].sigmoid(), own[:, 2:]], dim=1)
            return self.bbox_coder.decode(anchors[anchor], own, strides[anchor, None])

        return decode

    def _lt_anchors_and_strides(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(n, 4) and (n,) of all levels; pixels."""
        strides = [
            torch.full((len(anchors),), float(stride), device=anchors.device)
            for anchors, stride in zip(levels, self.featmap_strides)
        ]
        return torch.cat(list(levels)), torch.cat(strides)


@register_head_family(SABLRetinaHead)
class SABLRetinaConsistency(AnchorConsistency):
    """Mixin of SABL heads, which say the sides of a box by buckets and offsets in them."""

    lt_place_of_samples = 8

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        sizes = [level.shape[-2:] for level in arguments['cls_scores']]
        squares = torch.cat(
            self.square_anchor_generator.grid_priors(
                sizes, device=arguments['cls_scores'][0].device
            )
        )
        buckets, offsets = (
            flatten_levels(levels, self.side_num * 4).flatten(0, 1)
            for levels in zip(*arguments['bbox_preds'])
        )

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            predicted = [buckets[rows].float(), offsets[rows].float()]
            return self.bbox_coder.decode(squares[rows % len(squares)], predicted)[0]

        return decode


@register_head_family(GARetinaHead)
class GuidedAnchorConsistency(AnchorConsistency):
    """Mixin of heads that predict the anchors of each image."""

    def lt_anchors(self, arguments: dict[str, Any]) -> Tensor:
        scores = arguments['cls_scores']
        _, guided, _ = self.get_anchors(
            [level.shape[-2:] for level in scores],
            arguments['shape_preds'],
            arguments['loc_preds'],
            arguments['batch_img_metas'],
            device=scores[0].device,
        )
        return torch.cat([torch.cat(levels) for levels in guided])


@register_head_family(GARPNHead)
class GuidedRPNConsistency(GuidedAnchorConsistency):
    """Mixin of a region proposal network with guided anchors."""

    lt_key_prefix = 'rpn_'


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


@register_head_family(GFLHead, LDHead)
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
