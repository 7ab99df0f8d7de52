"""DETR and its descendants: the matched queries of the last decoder layer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mmdet.models.dense_heads import DDQDETRHead, DeformableDETRHead, DETRHead, DINOHead
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from lt_mm.models.heads.families.dense_base import Assigned, DenseConsistency, assigned_by_target
from lt_mm.models.heads.head_families import register_head_family


@register_head_family(DETRHead, DeformableDETRHead, DINOHead)
class DETRConsistency(DenseConsistency):
    """Mixin of DETR-like heads."""

    # Its input comes from a transformer, which sees all images.
    lt_takes_teacher = False

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        labels, _, boxes, _, rows, _ = targets
        sides = _sides(arguments['img_meta'], boxes)
        targets_xyxy = bbox_cxcywh_to_xyxy(boxes[rows]) * sides
        return assigned_by_target(rows, targets_xyxy, labels[rows], arguments['gt_instances'])

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        # Layer after layer; what the encoder's proposals were matched to comes last.
        images = len(arguments['batch_img_metas'])
        last = (len(arguments['all_layers_cls_scores']) - 1) * images
        return assigned[last : last + images]

    def lt_select(self, name: str, value: Any, images: list[int]) -> Any:
        if name.startswith('all_layers_'):
            return value[:, images]
        return super().lt_select(name, value, images)

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return _matching(arguments, arguments['all_layers_cls_scores'])

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        predicted = _matching(arguments, arguments['all_layers_bbox_preds'])
        metas = arguments['batch_img_metas']
        sides = torch.stack([_sides(meta, predicted) for meta in metas])
        queries, predicted = predicted.shape[1], predicted.flatten(0, 1)

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            boxes = bbox_cxcywh_to_xyxy(predicted[rows].float())
            return boxes * sides[rows // queries]

        return decode


@register_head_family(DDQDETRHead)
class DDQConsistency(DETRConsistency):
    """Mixin of DDQ heads, which match only the queries that are distinct in a layer.

    They keep which these are in the whole batch.
    """

    lt_splits_batches = False

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        compared = super().lt_compared(assigned, arguments)
        layers = len(arguments['all_layers_cls_scores'])
        if layers == 1:  # all are
            return compared
        masks = self.cache_dict['distinct_query_mask'][layers - 2]
        heads = self.cache_dict['num_heads']
        return [
            replace(image, rows=masks[number * heads][0].nonzero()[:, 0][image.rows])
            for number, image in enumerate(compared)
        ]


def _matching(arguments: dict[str, Any], all_layers: Tensor) -> Tensor:
    """(B, n, ...) of the last layer, without DINO's denoising and DDQ's dense queries."""
    others = arguments.get('dn_meta') or {}
    end = all_layers.shape[2] - others.get('num_dense_queries', 0)
    return all_layers[-1][:, others.get('num_denoising_queries', 0) : end]


def _sides(meta: dict[str, Any], like: Tensor) -> Tensor:
    """(4,) width, height, width, height of an image in pixels."""
    height, width = meta['img_shape'][:2]
    return like.new_tensor([width, height, width, height], dtype=torch.float32)
