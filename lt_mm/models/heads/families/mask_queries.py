"""MaskFormer and Mask2Former: queries that say the mask of an instance in the whole image."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from mmdet.models.dense_heads import Mask2FormerHead, MaskFormerHead
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from lt_mm.models.heads.candidates import Annotated, Detections, rows_of_batch
from lt_mm.models.heads.families.dense_base import Assigned, DenseConsistency
from lt_mm.models.heads.families.mask_head import MaskTermConsistency
from lt_mm.models.heads.gathering import GatheredBatch, Part
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.structures.errors import UnsupportedHeadError


@dataclass(kw_only=True)
class _MaskDetections(Detections):
    """Detections with masks.

    Attributes:
        masks: (N, h, w) logits over the whole image, with the padding of the batch.
        num_masks: n of the mask term, as the stock mask loss counts it.
    """

    masks: Tensor
    num_masks: float


@register_head_family(MaskFormerHead, Mask2FormerHead)
class MaskFormerConsistency(DenseConsistency, MaskTermConsistency):
    """Mixin of MaskFormer heads, which have classes and masks, but no boxes.

    Compared are the queries of the last layer that are matched to an instance; stuff is not. A
    memory keeps their classes alone.
    """

    lt_averages_positives = False
    lt_splits_batches = False
    lt_takes_teacher = False
    lt_remembers_masks = False
    _lt_num_masks = 0
    _lt_records: list[InstanceData]

    def preprocess_gt(self, batch_gt_instances: list[InstanceData], *args: Any) -> Any:
        # What it gives on has lost the record, and has stuff after the instances.
        self._lt_records = batch_gt_instances
        return super().preprocess_gt(batch_gt_instances, *args)

    def lt_records(self, arguments: dict[str, Any]) -> list[InstanceData]:
        return self._lt_records

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        labels, sampled = targets[0], targets[6]
        weights = torch.tensor(self.class_weight, device=labels.device)
        return Assigned(
            sampled.pos_inds, sampled.pos_assigned_gt_inds.long(), float(weights[labels].sum())
        )

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        instances, last = [], assigned[-len(self._lt_records) :]
        self._lt_num_masks = sum(len(image.rows) for image in last)  # of stuff, too
        for image, record in zip(last, self._lt_records):
            kept = image.annotations < len(record)
            instances.append(
                replace(image, rows=image.rows[kept], annotations=image.annotations[kept])
            )
        return instances

    def lt_gather(self, part: Part) -> GatheredBatch:
        if self.lt_joins_ranks:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts masks of whole images, whose sizes differ between '
                'the ranks, so that the ranks cannot compare them; expected across_ranks=False and '
                "memory=None in the LossTransformHead, with placement='rank' in the sampler"
            )
        return super().lt_gather(part)

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return arguments['all_cls_scores'][-1]

    def lt_is_sigmoid(self) -> bool:
        return False

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        detections = super().lt_detections(assigned, arguments)
        masks = arguments['all_mask_preds'][-1]
        height, width = arguments['batch_img_metas'][0]['batch_input_shape']
        whole = masks.new_tensor([0, 0, width, height], dtype=torch.float32)
        num_masks = masks.new_tensor(float(self._lt_num_masks))
        detections.priors = whole.expand(sum(detections.counts), 4)
        return _MaskDetections(
            **vars(detections),
            masks=masks.flatten(0, 1),
            num_masks=max(reduce_mean(num_masks).item(), 1),
        )

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Any:
        return None

    def lt_add_terms(self, detections: Any, losses: dict[str, Any]) -> None:
        super().lt_add_terms(detections, losses)
        rows = rows_of_batch(detections.positives, detections.counts)
        annotated = Annotated(detections.records, detections.annotations)
        with self.lt_with_graph('mask'):
            masks = detections.masks[rows]
        rois = detections.priors[rows]
        self.lt_add_mask_term(masks, rois, annotated, None, detections.num_masks, losses)
