"""The consistency term on mask heads: the masks of an instance on one grid of the source."""

from dataclasses import replace
from typing import Any

import torch
from mmdet.models.roi_heads.mask_heads import DynamicMaskHead, FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from torch import Tensor

from lt_mm.core.consistency import compared_cells, mask_consistency
from lt_mm.core.geometry import boxes_to_source, is_invertible, masks_to_source
from lt_mm.core.memory_codes import MaskCode, class_probabilities
from lt_mm.core.pairing import distance_to_annotations, group_hulls
from lt_mm.core.weak_targets import weak_targets
from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.candidates import Annotated
from lt_mm.models.heads.empty_terms import BLURRED, NO_PAIR
from lt_mm.models.heads.families.roi_sampler import records_of
from lt_mm.models.heads.gathering import Part
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.models.heads.pairing import Pairs, form_pairs
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import image_matrices
from lt_mm.structures.supervision import Supervision

# Cells of the grid that are read across an edge of a mask are left out. Otherwise perfect masks
# differ where their RoIs lie differently: the term of masks with p = 0.88 is 0.003, and is 0.00002
# so. Of a mask that lies three of its own cells off, 3/4 of the term are left.
_MAX_BLUR = 0.1


class MaskTermConsistency(ConsistencyMixin):
    """Base of the mixins of heads that predict masks of instances."""

    lt_remembers_masks = True

    def lt_add_mask_term(
        self,
        logits: Tensor,
        rois: Tensor,
        annotated: Annotated,
        distances: Tensor,
        avg_factor: float,
        losses: dict[str, Any],
    ) -> None:
        """Compares P masks, each of an annotation; adds the term to the losses.

        Args:
            logits: (P, h, w), over its RoI; receives gradient.
            rois: (P, 4), pixels of the replicas.
            annotated: Their annotations.
            distances: (P,), of each from its annotation.
            avg_factor: What this part of the batch adds to n of the formula.
            losses: The loss dict of the stock head.
        """
        columns = self._lt_columns(logits, rois, annotated, distances)
        batch = self.lt_gather(Part.of(columns, annotated.records, avg_factor))
        # The pairs are formed here.
        options = self.lt_options
        remembers = self._lt_keeps_masks()
        pairs = form_pairs(batch, options.pairing, options.iou_threshold, alone=remembers)
        with self.lt_with_graph('mask'):
            masks, inside = self._lt_masks_in_source(batch.columns, pairs)
        if remembers:
            pairs = self._lt_with_memory(masks, inside, pairs, batch.columns)
        if options.weak_target is not None:
            pairs = self._lt_with_weak_masks(masks, inside, pairs, batch.columns)
        self.lt_add_term(
            'mask',
            lambda pairs: self._lt_mask_term(masks, inside, pairs, batch.avg_factor),
            pairs,
            batch,
            losses,
        )
        paired = pairs.paired
        sees = inside if pairs.cells is None else pairs.cells.any(inside)
        cells = compared_cells(sees, pairs.compared_ids, pairs.targets.get('mask'))
        self.lt_watch_term('mask', {NO_PAIR: paired, BLURRED: cells.flatten(1).any(dim=1)})
        if self.lt_recorder is not None:
            group_ids = pairs.group_ids[batch.own]
            self.lt_recorder(_pair_record(columns, group_ids, paired[batch.own]))

    def _lt_keeps_masks(self) -> bool:
        memory = self.lt_options.memory
        return self.lt_remembers_masks and memory is not None and memory.masks

    def _lt_columns(
        self, logits: Tensor, rois: Tensor, annotated: Annotated, distances: Tensor
    ) -> dict[str, Tensor]:
        """What pairs and compares the P masks, each of an annotation.

        'restored' are boxes in pixels of the source whose hull in a group is the instance.
        """
        labels, matrices, images = (
            annotated['labels'],
            annotated['source_matrices'],
            annotated.images,
        )
        columns = dict(
            images=images,
            instances=annotated['source_ids'],
            labels=labels,
            logits=logits,
            rois=rois,
            matrices=matrices,
            weak=annotated.are_weak,
        )
        if self.lt_options.pairing == 'iou':
            whole = image_matrices(annotated.records, rois.device)[images]
            return dict(
                columns, may_pair=is_invertible(whole), restored=boxes_to_source(rois, whole)
            )
        if self._lt_keeps_masks():
            columns.update(checks=annotated.checks, source_boxes=annotated['source_boxes'])
        return dict(
            columns,
            may_pair=annotated.may_pair(self.lt_options.min_visibility),
            restored=boxes_to_source(annotated['bboxes'], matrices),
            distances=distances,
        )

    def _lt_masks_in_source(
        self, columns: dict[str, Tensor], pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        """The Q masks on the grids of their instances, and where they say something."""
        if 'source_boxes' in columns:  # a memory needs one grid in all epochs
            regions = columns['source_boxes']
        else:
            regions = group_hulls(columns['restored'], pairs.group_ids)
        return masks_to_source(
            columns['logits'],
            columns['rois'],
            columns['matrices'],
            regions,
            self.lt_options.mask_grid,
            max_blur=_MAX_BLUR,
        )

    @torch.no_grad()
    def _lt_with_memory(
        self, masks: Tensor, inside: Tensor, pairs: Pairs, columns: dict[str, Tensor]
    ) -> Pairs:
        temperature = self.lt_options.temperature
        if pairs.cells is not None:
            masks, inside = pairs.cells.mean_mask_logits(masks, inside, temperature)
        probabilities = class_probabilities(masks, sigmoid=True, temperature=temperature)
        known = torch.where(inside, probabilities, torch.nan)
        code = MaskCode(self.lt_options.mask_grid)
        return self.lt_remember(pairs, columns, dict(mask=(code, known)))

    @torch.no_grad()
    def _lt_with_weak_masks(
        self, masks: Tensor, inside: Tensor, pairs: Pairs, columns: dict[str, Tensor]
    ) -> Pairs:
        temperature = self.lt_options.weak_target.temperature
        probabilities = class_probabilities(masks, sigmoid=True, temperature=temperature)
        known = torch.where(inside, probabilities, torch.nan)
        targets = weak_targets(known, pairs.group_ids, columns['weak'])
        return replace(pairs, targets=dict(mask=targets))

    def _lt_mask_term(
        self, masks: Tensor, inside: Tensor, pairs: Pairs, avg_factor: float
    ) -> Tensor:
        temperature = self.lt_options.temperature
        if pairs.cells is not None:
            masks, inside = pairs.cells.mean_mask_logits(masks, inside, temperature)
        return mask_consistency(
            masks,
            inside,
            pairs.compared_ids,
            temperature=temperature,
            detach_mean=self.lt_options.detach_mean,
            avg_factor=avg_factor,
            target=pairs.targets.get('mask'),
        )


@register_head_family(FCNMaskHead, DynamicMaskHead)
class MaskConsistency(MaskTermConsistency):
    """Mixin of a mask head of a two-stage detector."""

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Refuses mask heads with a loss of their own."""
        stocks: Any = cls.lt_heads
        loss_and_target = getattr(type(head), 'loss_and_target', None)
        if loss_and_target not in [stock.loss_and_target for stock in stocks]:
            raise UnsupportedHeadError(
                f'{type(head).__name__} predicts masks in a form of its own; expected an '
                'FCNMaskHead or a subclass that keeps its loss_and_target. Wrap '
                'roi_head.bbox_head and the RoI sampler alone, and leave the mask head as '
                'it is'
            )

    def loss_and_target(
        self, mask_preds: Tensor, sampling_results: list[SamplingResult], *args: Any, **kwargs: Any
    ) -> dict:
        # A copy: on the CPU the stock mask targets clip the RoIs in place.
        rois = torch.cat([sampled.pos_priors for sampled in sampling_results])
        result = self._lt_stock_losses(mask_preds, sampling_results, *args, **kwargs)
        annotated = Annotated(
            records_of(sampling_results),
            [sampled.pos_assigned_gt_inds.long() for sampled in sampling_results],
        )
        labels = annotated['labels']
        channels = torch.zeros_like(labels) if self.class_agnostic else labels
        with self.lt_with_graph('mask'):
            logits = mask_preds[torch.arange(len(labels), device=labels.device), channels]
        given = torch.cat([sampled.pos_is_gt.bool() for sampled in sampling_results])
        distances = distance_to_annotations(rois, annotated['bboxes'], given)
        count = max(len(mask_preds), 1)
        self.lt_add_mask_term(logits, rois, annotated, distances, count, result['loss_mask'])
        return result

    def _lt_stock_losses(
        self,
        mask_preds: Tensor,
        sampling_results: list[SamplingResult],
        batch_gt_instances: Any,
        rcnn_train_cfg: Any,
    ) -> dict:
        """What the stock head gives, with the loss of the supervised images alone."""
        stock = super().loss_and_target
        supervision = Supervision.of(records_of(sampling_results), self.lt_options.supervise)
        if supervision.is_stock:
            return stock(mask_preds, sampling_results, batch_gt_instances, rcnn_train_cfg)
        counts = [len(each.pos_priors) for each in sampling_results]
        rows = supervision.rows_of(counts, mask_preds.device)
        images = supervision.supervised_images
        return stock(
            mask_preds[rows],
            [sampling_results[image] for image in images],
            [batch_gt_instances[image] for image in images],
            rcnn_train_cfg,
        )


@torch.no_grad()
def _pair_record(columns: dict[str, Tensor], group_ids: Tensor, paired: Tensor) -> PairRecord:
    return PairRecord(
        kind='mask',
        images=columns['images'],
        source_ids=columns['instances'][:, 0],
        group_ids=group_ids,
        paired=paired,
        labels=columns['labels'],
        scores=torch.ones_like(paired, dtype=torch.float32),
        boxes=columns['rois'],
        restored=boxes_to_source(columns['rois'], columns['matrices']),
        masks=columns['logits'].float().sigmoid(),
    )
