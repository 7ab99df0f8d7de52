"""The consistency term on the box and mask heads of MMDetection's two-stage detectors.

How the record reaches the heads: the stock RoI head gives each image's
``gt_instances`` to its RoI sampler. :class:`SourceTrackingSampler` wraps that sampler
and attaches them to the ``SamplingResult``, which the stock RoI head then hands to
``loss_and_target`` of its heads.
"""

from typing import Any

import torch
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    PISARoIHead,
    SCNetRoIHead,
    StandardRoIHead,
    TridentRoIHead,
)
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmengine.structures import InstanceData
from torch import Tensor, nn

from lt_mm.core.consistency import mask_consistency
from lt_mm.core.geometry import boxes_to_source, is_invertible, masks_to_source
from lt_mm.core.pairing import group_hulls, is_paired
from lt_mm.models.heads.detections import (
    DetectionConsistency,
    Detections,
    image_numbers,
    of_annotations,
    pair_annotations,
    pair_overlapping,
)
from lt_mm.models.heads.loss_transform_head import (
    ConsistencyHead,
    ConsistencyOptions,
    add_consistency,
    register_wrap,
)
from lt_mm.models.heads.ranks import OwnRank
from lt_mm.registry import TASK_UTILS, register
from lt_mm.structures.errors import MissingRecordError, UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import (
    InstanceRecord,
    image_matrices,
    refuse_moved_image,
    source_ids_of,
)

# Stock RoI heads with supported box heads, whose own steps the term does not survive.
_REFUSED = {
    PISARoIHead: 'goes past loss_and_target of its box head; expected a StandardRoIHead, with a '
    "sampler such as dict(type='RandomSampler', ...)",
    SCNetRoIHead: 'drops all that its mask head gives but loss_mask; expected to wrap each stage '
    'of its bbox_head, and in train_cfg.rcnn each sampler: '
    "dict(type='lt_mm.SourceTrackingSampler', sampler=<stock sampler>)",
    TridentRoIHead: 'is given each image once for every branch, and predictions for one and the '
    'same image are no replicas; expected a StandardRoIHead',
}


@register(TASK_UTILS)
class SourceTrackingSampler:
    """A stock RoI sampler whose results know the source of every positive.

    Below a RoI head of which only the box or mask head is wrapped, it also puts a
    front before the RoI head, so that both forms of the config make the same checks.

    Args:
        sampler: Config of the stock sampler, or a built one.
        context: The RoI head, as it gives itself to its sampler; goes on to the stock
            sampler.
        **kwargs: Further arguments of the stock sampler.
    """

    def __init__(self, sampler: Any, context: Any = None, **kwargs: Any) -> None:
        if isinstance(sampler, dict):
            sampler = TASK_UTILS.build(sampler, default_args=dict(context=context, **kwargs))
        self.sampler = sampler
        wrapped = _wrapped_heads(context)
        if wrapped and not isinstance(context, ConsistencyHead):
            add_consistency(_front_of(context), context, wrapped[0].lt_options)

    def sample(
        self,
        assign_result: Any,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        **kwargs: Any,
    ) -> SamplingResult:
        """Samples as the stock sampler does; attaches ``gt_record`` to the result.

        Raises:
            MissingRecordError: If ``gt_instances`` carries no record.
            UnsupportedHeadError: If the stock sampler gives no plain result.
        """
        result = self.sampler.sample(assign_result, pred_instances, gt_instances, **kwargs)
        if not isinstance(result, SamplingResult):
            raise UnsupportedHeadError(
                f'{type(self.sampler).__name__} gives more than a SamplingResult; '
                "expected a sampler such as dict(type='RandomSampler', ...)"
            )
        InstanceRecord.read(gt_instances)
        result.gt_record = gt_instances
        return result


class BBoxConsistency(DetectionConsistency):
    """Front of a box head of a two-stage detector."""

    def loss_and_target(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        *args: Any,
        **kwargs: Any,
    ) -> dict:
        result = super().loss_and_target(
            cls_score, bbox_pred, rois, sampling_results, *args, **kwargs
        )

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self._decode(bbox_pred[rows], rois[rows, 1:], labels)

        # Images are laid out as positives, then negatives.
        detections = Detections(
            logits=cls_score if self.with_cls else None,
            decode=decode if self.with_reg else None,
            counts=[len(sampled.priors) for sampled in sampling_results],
            records=_records_of(sampling_results),
            positives=[
                torch.arange(len(sampled.pos_priors), device=rois.device)
                for sampled in sampling_results
            ],
            annotations=_annotations_of(sampling_results),
            sigmoid=self.with_cls and self.loss_cls.use_sigmoid,
            avg_factor=max(len(rois), 1),
        )
        self._add_terms(detections, result['loss_bbox'])
        return result

    def _decode(self, deltas: Tensor, priors: Tensor, labels: Tensor) -> Tensor:
        if not self.reg_class_agnostic:
            size = self.bbox_coder.encode_size
            each = deltas.unflatten(1, (deltas.shape[1] // size, size))
            deltas = each[torch.arange(len(each), device=each.device), labels]
        return self.bbox_coder.decode(priors.float(), deltas.float())


class MaskConsistency(ConsistencyHead):
    """Front of a mask head: the masks of an instance on one grid of the source."""

    def loss_and_target(
        self, mask_preds: Tensor, sampling_results: list[SamplingResult], *args: Any, **kwargs: Any
    ) -> dict:
        # A copy: on the CPU the stock mask targets clip the RoIs in place.
        rois = torch.cat([sampled.pos_priors for sampled in sampling_results])
        result = super().loss_and_target(mask_preds, sampling_results, *args, **kwargs)
        records = _records_of(sampling_results)
        self._watch_groups(source_ids_of(records), rois.device)
        annotations = _annotations_of(sampling_results)
        self._term(
            'mask',
            lambda: self._mask_term(mask_preds, rois, records, annotations),
            result['loss_mask'],
        )
        return result

    def _mask_term(
        self,
        mask_preds: Tensor,
        rois: Tensor,
        records: list[InstanceData],
        annotations: list[Tensor],
    ) -> Tensor:
        labels = of_annotations('labels', records, annotations)
        matrices = of_annotations('source_matrices', records, annotations)
        ranks = self._exchange(len(labels), labels.device)
        group_ids, boxes = self._pair(rois, labels, records, annotations, ranks)
        hulls = group_hulls(ranks.join(boxes), group_ids)
        channels = torch.zeros_like(labels) if self.class_agnostic else labels
        rows = torch.arange(len(labels), device=labels.device)
        if self.lt_recorder is not None:
            self.lt_recorder(
                self._pair_record(
                    mask_preds[rows, channels],
                    labels,
                    rois,
                    matrices,
                    ranks.own(group_ids),
                    ranks.own(is_paired(group_ids)),
                    annotations,
                    records,
                )
            )
        masks, inside = masks_to_source(
            ranks.join(mask_preds[rows, channels]),
            ranks.join(rois),
            ranks.join(matrices),
            hulls,
            self.lt_options.mask_grid,
        )
        return mask_consistency(
            masks,
            inside,
            group_ids,
            temperature=self.lt_options.temperature,
            detach_mean=self.lt_options.detach_mean,
            avg_factor=ranks.total(max(len(mask_preds), 1)),
        )

    @torch.no_grad()
    def _pair_record(
        self,
        mask_logits: Tensor,
        labels: Tensor,
        rois: Tensor,
        matrices: Tensor,
        group_ids: Tensor,
        paired: Tensor,
        annotations: list[Tensor],
        records: list[InstanceData],
    ) -> PairRecord:
        return PairRecord(
            kind='mask',
            images=image_numbers(annotations),
            group_ids=group_ids,
            source_ids=of_annotations('source_ids', records, annotations)[:, 0],
            paired=paired,
            labels=labels,
            scores=torch.ones_like(labels, dtype=torch.float32),
            boxes=rois,
            restored=boxes_to_source(rois, matrices),
            masks=mask_logits.float().sigmoid(),
        )

    def _pair(
        self,
        rois: Tensor,
        labels: Tensor,
        records: list[InstanceData],
        annotations: list[Tensor],
        ranks: OwnRank,
    ) -> tuple[Tensor, Tensor]:
        """Group ids, and restored boxes (P, 4) whose hull is the instance.

        The group ids are those of all ranks, if these exchange what pairs.
        """
        matrices = of_annotations('source_matrices', records, annotations)
        if self.lt_options.pairing != 'iou':
            annotated = of_annotations('bboxes', records, annotations)
            group_ids, _ = pair_annotations(
                records, annotations, self.lt_options.min_visibility, ranks
            )
            return group_ids, boxes_to_source(annotated, matrices)
        views = image_matrices(records, rois.device)[image_numbers(annotations)]
        restored = boxes_to_source(rois, views)
        group_ids = pair_overlapping(
            restored,
            labels,
            is_invertible(views),
            [len(own) for own in annotations],
            source_ids_of(records),
            self.lt_options.iou_threshold,
            ranks,
        )
        return group_ids, restored


class RoIConsistency(ConsistencyHead):
    """Front of a RoI head: checks what only the data samples can tell."""

    def loss(
        self, x: tuple[Tensor], rpn_results_list: list[InstanceData], batch_data_samples: list[Any]
    ) -> dict[str, Tensor]:
        for sample in batch_data_samples:
            refuse_moved_image(sample)
        losses = super().loss(x, rpn_results_list, batch_data_samples)
        for key in self._keys_of_terms():
            if key not in losses:
                raise UnsupportedHeadError(
                    f'{type(self).__name__} does not use loss_and_target of its wrapped '
                    f'heads: {key} was not added; wrap a StandardRoIHead, a '
                    'CascadeRoIHead, or a subclass that keeps bbox_loss and mask_loss'
                )
        return losses

    def _keys_of_terms(self) -> list[str]:
        kinds = {BBoxConsistency: 'cls', MaskConsistency: 'mask'}
        return [
            f'loss_lt_{kind}'
            for head in _wrapped_heads(self)
            for front, kind in kinds.items()
            if isinstance(head, front)
        ]


class CascadeConsistency(RoIConsistency):
    """Front of a cascade, whose losses carry the stage before their name."""

    def _keys_of_terms(self) -> list[str]:
        # Without a proposal the stock cascade ends after a stage; the first one is run.
        return [f's0.{key}' for key in super()._keys_of_terms()]


def _front_of(roi_head: nn.Module) -> type:
    return CascadeConsistency if isinstance(roi_head, CascadeRoIHead) else RoIConsistency


def _heads_of(roi_head: nn.Module, name: str) -> list[nn.Module]:
    """The box or mask heads of a RoI head: one, or one a stage."""
    heads = getattr(roi_head, name, None)
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _wrapped_heads(roi_head: nn.Module) -> list[nn.Module]:
    heads = _heads_of(roi_head, 'bbox_head') + _heads_of(roi_head, 'mask_head')
    return [head for head in heads if isinstance(head, ConsistencyHead)]


def _records_of(sampling_results: list[SamplingResult]) -> list[InstanceData]:
    for sampled in sampling_results:
        if not hasattr(sampled, 'gt_record'):
            raise MissingRecordError(
                'the RoI sampler does not pass on the sources of the positives; wrap the '
                "whole RoI head, roi_head=dict(type='lt_mm.LossTransformHead', "
                'head=<stock roi_head>), or its sampler: train_cfg.rcnn.sampler = '
                "dict(type='lt_mm.SourceTrackingSampler', sampler=<stock sampler>)"
            )
    return [sampled.gt_record for sampled in sampling_results]


def _annotations_of(sampling_results: list[SamplingResult]) -> list[Tensor]:
    return [sampled.pos_assigned_gt_inds.long() for sampled in sampling_results]


def _wrap_bbox_head(head: BBoxHead, options: ConsistencyOptions) -> nn.Module:
    # SABLHead skips BBoxHead's own construction and predicts buckets.
    if type(head).loss_and_target is not BBoxHead.loss_and_target or not hasattr(head, 'with_cls'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} has a loss of its own; expected a BBoxHead that '
            'keeps BBoxHead.loss_and_target, such as Shared2FCBBoxHead'
        )
    if head.custom_activation or not hasattr(head.loss_cls, 'use_sigmoid'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} classifies with {type(head.loss_cls).__name__}, '
            'whose scores are neither a softmax nor sigmoids over the logits; use '
            "loss_cls=dict(type='CrossEntropyLoss', ...)"
        )
    if hasattr(head, 'num_instance') or hasattr(head, 'fc_cls_ref'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} predicts several instances for one RoI, so its '
            'predictions cannot be grouped by instance; use Shared2FCBBoxHead'
        )
    return add_consistency(BBoxConsistency, head, options)


def _wrap_mask_head(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    if getattr(type(head), 'loss_and_target', None) is not FCNMaskHead.loss_and_target:
        raise UnsupportedHeadError(
            f'{type(head).__name__} predicts masks in a form of its own; expected an '
            'FCNMaskHead or a subclass that keeps its loss_and_target. Wrap '
            'roi_head.bbox_head and the RoI sampler alone, and leave the mask head as '
            'it is'
        )
    return add_consistency(MaskConsistency, head, options)


def _wrap_roi_head(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    boxes, masks = _heads_of(head, 'bbox_head'), _heads_of(head, 'mask_head')
    if not boxes or not all(isinstance(box_head, BBoxHead) for box_head in boxes):
        raise UnsupportedHeadError(
            f'{type(head).__name__} has no BBoxHead; expected a StandardRoIHead, a '
            'CascadeRoIHead or a subclass with '
            "bbox_head=dict(type='Shared2FCBBoxHead', ...)"
        )
    for kind, reason in _REFUSED.items():
        if isinstance(head, kind):
            raise UnsupportedHeadError(f'{type(head).__name__} {reason}')
    for box_head in boxes:
        _wrap_bbox_head(box_head, options)
    for mask_head in masks:
        _wrap_mask_head(mask_head, options)
    # Without train_cfg a RoI head has no sampler.
    if isinstance(head.bbox_sampler, list):
        head.bbox_sampler = [SourceTrackingSampler(own) for own in head.bbox_sampler]
    elif head.bbox_sampler is not None:
        head.bbox_sampler = SourceTrackingSampler(head.bbox_sampler)
    return add_consistency(_front_of(head), head, options)


register_wrap(lambda head: isinstance(head, BBoxHead), _wrap_bbox_head)
register_wrap(lambda head: isinstance(head, FCNMaskHead), _wrap_mask_head)
register_wrap(lambda head: isinstance(head, (StandardRoIHead, CascadeRoIHead)), _wrap_roi_head)
