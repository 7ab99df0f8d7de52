"""Heads that say the mask of an instance in the whole image: MaskFormer, Mask2Former, SOLO."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import (
    DecoupledSOLOHead,
    Mask2FormerHead,
    MaskFormerHead,
    SOLOHead,
    SOLOV2Head,
)
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from lt_mm.core.consistency import logits_of_both
from lt_mm.core.geometry import overlap_of_masks
from lt_mm.core.pairing import UNPAIRED, compact_rows, nearest_in_each_replica
from lt_mm.models.heads.candidates import Annotated, Detections, rows_of_batch
from lt_mm.models.heads.families.dense_base import Assigned, DenseConsistency, flatten_levels
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


class WholeMaskConsistency(DenseConsistency, MaskTermConsistency):
    """Base of the mixins of heads that have classes and masks of whole images, but no boxes.

    A memory keeps their classes alone.
    """

    lt_averages_positives = False
    lt_takes_teacher = False
    lt_remembers_masks = False

    def lt_gather(self, part: Part) -> GatheredBatch:
        if self.lt_joins_ranks:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts masks of whole images, whose sizes differ between '
                'the ranks, so that the ranks cannot compare them; expected across_ranks=False and '
                "memory=None in the LossTransformHead, with placement='rank' in the sampler"
            )
        return super().lt_gather(part)

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Any:
        return None

    def lt_whole_images(self, like: Tensor, arguments: dict[str, Any]) -> Tensor:
        """(4,) the box of the images with their padding, as a float32 tensor on a device."""
        height, width = arguments['batch_img_metas'][0]['batch_input_shape']
        return like.new_tensor([0, 0, width, height], dtype=torch.float32)


@register_head_family(MaskFormerHead, Mask2FormerHead)
class MaskFormerConsistency(WholeMaskConsistency):
    """Mixin of MaskFormer heads.

    Compared are the queries of the last layer that are matched to an instance; stuff is not.
    """

    lt_splits_batches = False
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

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return arguments['all_cls_scores'][-1]

    def lt_is_sigmoid(self) -> bool:
        return False

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        detections = super().lt_detections(assigned, arguments)
        masks = arguments['all_mask_preds'][-1]
        whole = self.lt_whole_images(masks, arguments)
        num_masks = masks.new_tensor(float(self._lt_num_masks))
        detections.priors = whole.expand(sum(detections.counts), 4)
        return _MaskDetections(
            **vars(detections),
            masks=masks.flatten(0, 1),
            num_masks=max(reduce_mean(num_masks).item(), 1),
        )

    def lt_add_terms(self, detections: Any, losses: dict[str, Any]) -> None:
        super().lt_add_terms(detections, losses)
        rows = rows_of_batch(detections.positives, detections.counts)
        annotated = Annotated(detections.records, detections.annotations)
        with self.lt_with_graph('mask'):
            masks = detections.masks[rows]
        rois = detections.priors[rows]
        distances = torch.zeros_like(rois[:, 0])  # an annotation has one query
        self.lt_add_mask_term(masks, rois, annotated, distances, detections.num_masks, losses)


@dataclass
class _Cells(Assigned):
    """The positives of one image, which are cells of the grids of all levels.

    Attributes:
        masks: For each level (p_l, h_l, w_l), the mask that each of its cells is to predict.
    """

    masks: list[Tensor]


@dataclass(kw_only=True)
class _CellDetections(Detections):
    """Detections with the masks of their P positives.

    Attributes:
        masks: Logits over the whole image (p, h, w), those of one level of an image in a tensor;
            sizes differ between levels. The first has the size that all are to be brought to.
        whole: (4,), the box of the images with their padding.
        num_masks: n of the mask term, as the stock mask loss counts it.
    """

    masks: list[Tensor]
    whole: Tensor
    num_masks: float


@register_head_family(SOLOHead)
class SOLOConsistency(WholeMaskConsistency):
    """Mixin of SOLO heads, which predict a class and a mask in each cell of several grids.

    Positives are the cells in the centre region of an instance. The nearest to an annotation is
    the one whose mask overlaps most with the annotation's.
    """

    lt_reads = '_lt_targets_by_place'

    def _get_targets_single(self, gt_instances: InstanceData, **kwargs: Any) -> tuple:
        masks, places, *others = self._lt_targets_by_place(gt_instances, **kwargs)
        labels = gt_instances.labels
        background = labels.new_full((self.num_classes + 1,), self.num_classes)
        classes = torch.cat([background, labels]).long()
        return masks, [classes[level] for level in places], *others

    def _lt_targets_by_place(self, gt_instances: InstanceData, **kwargs: Any) -> tuple:
        """The stock targets, with the places of the annotations instead of their classes.

        The first place is ``num_classes + 1``, after the label of the background.
        """
        labels = gt_instances.labels
        places = self.num_classes + 1 + torch.arange(len(labels), device=labels.device)
        named = InstanceData(bboxes=gt_instances.bboxes, masks=gt_instances.masks, labels=places)
        return super()._get_targets_single(named, **kwargs)

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        places = torch.cat([level.flatten() for level in targets[1]])
        rows = (places > self.num_classes).nonzero()[:, 0]
        return _Cells(
            rows, places[rows] - self.num_classes - 1, len(rows), self.lt_mask_targets(targets)
        )

    def lt_mask_targets(self, targets: tuple) -> list[Tensor]:
        """For each level the mask that each of its positives is to predict, in their order."""
        return targets[0]

    def lt_mask_logits(
        self, arguments: dict[str, Any], image: int, level: int, cells: Tensor
    ) -> Tensor:
        """(p, h, w) the masks that cells (p,) of one level predict, from the whole arguments."""
        return arguments['mlvl_mask_preds'][level][image, cells]

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return flatten_levels(arguments['mlvl_cls_preds'], self.cls_out_channels)

    def lt_detections(self, assigned: list[Any], arguments: dict[str, Any]) -> Detections:
        detections = super().lt_detections(assigned, arguments)
        num_masks = sum(image.avg_factor for image in assigned)
        none = assigned[0].rows[:0]
        with self.lt_with_graph('mask'):
            masks = [self.lt_mask_logits(arguments, 0, 0, none)]  # has the size, and a graph
            distances = [masks[0].new_zeros(0, dtype=torch.float32)]
            for image, own in enumerate(assigned):
                for level, cells in enumerate(self._lt_cells_of_levels(own.rows)):
                    if len(cells):
                        masks.append(self.lt_mask_logits(arguments, image, level, cells))
                        predicted = masks[-1].detach().sigmoid()
                        distances.append(1 - overlap_of_masks(predicted, own.masks[level]))
        detections.avg_factor = num_masks + 1  # as the stock class loss
        detections.distances = torch.cat(distances)
        return _CellDetections(
            **vars(detections),
            masks=masks,
            whole=self.lt_whole_images(masks[0], arguments),
            num_masks=max(num_masks, 1),
        )

    def _lt_cells_of_levels(self, rows: Tensor) -> list[Tensor]:
        """The rows (p,) of an image as cells of the grid of each level, counted from 0 there."""
        first, found = 0, []
        for side in self.num_grids:
            found.append(rows[(rows >= first) & (rows < first + side**2)] - first)
            first += side**2
        return found

    def lt_add_terms(self, detections: Any, losses: dict[str, Any]) -> None:
        super().lt_add_terms(detections, losses)
        annotated = Annotated(detections.records, detections.annotations)
        distances = detections.distances
        kept = torch.ones_like(distances, dtype=torch.bool)
        if self.lt_options.pairing in ('gt', 'gt_score'):  # to resize no masks in vain
            groups = compact_rows(annotated['source_ids'])
            groups = torch.where(
                annotated.may_pair(self.lt_options.min_visibility), groups, UNPAIRED
            )
            kept = nearest_in_each_replica(groups, annotated.images, distances) >= 0
        counts = [len(own) for own in annotated.annotations]
        annotated.annotations = [
            own[keep] for own, keep in zip(annotated.annotations, kept.split(counts))
        ]
        with self.lt_with_graph('mask'):
            masks = _of_one_size(detections.masks, kept)
        rois = detections.whole.expand(len(masks), 4)
        self.lt_add_mask_term(masks, rois, annotated, distances[kept], detections.num_masks, losses)


@register_head_family(DecoupledSOLOHead)
class DecoupledSOLOConsistency(SOLOConsistency):
    """Mixin of decoupled SOLO heads: a mask is the product of those of a column and of a row."""

    def lt_mask_logits(
        self, arguments: dict[str, Any], image: int, level: int, cells: Tensor
    ) -> Tensor:
        side = self.num_grids[level]
        x, y = (arguments[f'mlvl_mask_preds_{axis}'][level][image] for axis in 'xy')
        return logits_of_both(x[cells % side].float(), y[cells // side].float())


@register_head_family(SOLOV2Head)
class SOLOV2Consistency(SOLOConsistency):
    """Mixin of SOLOv2 heads, where a cell predicts the kernel that makes its mask."""

    def lt_mask_targets(self, targets: tuple) -> list[Tensor]:
        # In the order of the annotations. A cell that was given several has the label of the last.
        found = []
        for masks, cells in zip(targets[0], targets[3]):
            last = {cell: row for row, cell in enumerate(cells)}
            found.append(masks[[last[cell] for cell in sorted(last)]])
        return found

    def lt_mask_logits(
        self, arguments: dict[str, Any], image: int, level: int, cells: Tensor
    ) -> Tensor:
        kernels = arguments['mlvl_kernel_preds'][level][image].flatten(1)[:, cells]
        return torch.einsum('cp,chw->phw', kernels, arguments['mask_feats'][image])


def _of_one_size(masks: list[Tensor], kept: Tensor) -> Tensor:
    """The masks of all levels that are kept, as :class:`_CellDetections` has them: (P, h, w)."""
    size, found = masks[0].shape[-2:], []
    for own, keep in zip(masks, kept.split([len(own) for own in masks])):
        found.append(F.interpolate(own[keep][:, None].float(), size, mode='bilinear')[:, 0])
    return torch.cat(found)
