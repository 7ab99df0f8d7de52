"""The consistency term on the box heads of MMDetection's two-stage detectors.

How the record reaches the box head: the stock RoI head gives each image's
``gt_instances`` to its RoI sampler. :class:`SourceTrackingSampler` wraps that sampler
and attaches what the positives need to the ``SamplingResult``, which the stock RoI
head then hands to ``bbox_head.loss_and_target``.
"""
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmengine.structures import InstanceData
from torch import Tensor, nn

from lt_mm.adapters.head import (RECORD_REMEDY, ConsistencyHead, ConsistencyOptions,
                                 MissingRecordError, UnsupportedHeadError, add_consistency,
                                 paired_share, register_wrap, source_ids_of)
from lt_mm.core.consistency import box_consistency
from lt_mm.core.geometry import boxes_to_source, is_axis_aligned, is_invertible
from lt_mm.core.pairing import (UNPAIRED, groups_across_replicas,
                                is_paired, nearest_in_each_replica)
from lt_mm.registry import TASK_UTILS, register

_RECORD_FIELDS = ('source_ids', 'source_matrices', 'visibility')


@register(TASK_UTILS)
class SourceTrackingSampler:
    """A stock RoI sampler whose results know the source of every positive.

    Below a RoI head whose box head alone is wrapped, it also puts
    :class:`RoIConsistency` in front of the RoI head, so that both forms of the config
    make the same checks.

    Args:
        sampler: Config of the stock sampler, or a built one.
        context: The RoI head, as it gives itself to its sampler; goes on to the stock
            sampler.
        **kwargs: Further arguments of the stock sampler.
    """

    def __init__(self, sampler: Any, context: Any = None, **kwargs: Any) -> None:
        if isinstance(sampler, dict):
            sampler = TASK_UTILS.build(
                sampler, default_args=dict(context=context, **kwargs))
        self.sampler = sampler
        box_head = getattr(context, 'bbox_head', None)
        if isinstance(context, StandardRoIHead) and isinstance(box_head, BBoxConsistency):
            add_consistency(RoIConsistency, context, box_head.lt_options)

    def sample(self, assign_result: Any, pred_instances: InstanceData,
               gt_instances: InstanceData, **kwargs: Any) -> SamplingResult:
        """Samples as the stock sampler does; attaches ``gt_record`` to the result.

        Raises:
            MissingRecordError: If ``gt_instances`` carries no record.
            UnsupportedHeadError: If the stock sampler gives no plain result.
        """
        result = self.sampler.sample(assign_result, pred_instances, gt_instances,
                                     **kwargs)
        if not isinstance(result, SamplingResult):
            raise UnsupportedHeadError(
                f'{type(self.sampler).__name__} gives more than a SamplingResult; '
                "expected a sampler such as dict(type='RandomSampler', ...)")
        missing = [name for name in _RECORD_FIELDS if name not in gt_instances]
        if missing or 'source_id' not in gt_instances:
            raise MissingRecordError(
                f'gt_instances has no {", ".join(missing or ["source_id"])}, so nothing '
                'tells which predictions show the same instance; ' + RECORD_REMEDY)
        result.gt_record = gt_instances
        return result


@dataclass
class _Positives:
    """The positive predictions of a batch, P in all; the record of each."""
    rows: Tensor  # (P,) int64, rows of the head's predictions
    replicas: Tensor  # (P,) int64, image of the batch
    instances: Tensor  # (P,) int64, instance of the batch
    source_ids: Tensor  # (P, 2) int64
    matrices: Tensor  # (P, 3, 3) float64
    visibility: Tensor  # (P,)
    labels: Tensor  # (P,) int64
    priors: Tensor  # (P, 4)
    gt_bboxes: Tensor  # (P, 4)
    num_instances: int


class BBoxConsistency(ConsistencyHead):
    """Front of a box head of a two-stage detector, with `gt` pairing."""

    def loss_and_target(self, cls_score: Tensor, bbox_pred: Tensor, rois: Tensor,
                        sampling_results: List[SamplingResult], *args: Any,
                        **kwargs: Any) -> dict:
        result = super().loss_and_target(cls_score, bbox_pred, rois, sampling_results,
                                         *args, **kwargs)
        losses = result['loss_bbox']
        records = [_record_of(sampled) for sampled in sampling_results]
        self._watch_groups(source_ids_of(records))
        positives = _gather(sampling_results, records)
        group_ids = self._pair(positives)
        rows = positives.rows
        if self.with_cls:
            self._term('cls', lambda: self._class_term(
                cls_score[rows], group_ids, self.loss_cls.use_sigmoid,
                avg_factor=max(len(cls_score), 1)), losses)
        if self.with_reg:
            self._term('bbox', lambda: self._box_term(
                bbox_pred[rows], group_ids, positives, max(len(bbox_pred), 1)), losses)
        losses['lt_num_pairs'] = is_paired(group_ids).sum().float()
        losses['lt_paired_share'] = paired_share(
            group_ids, positives.instances, positives.num_instances)
        return result

    def _pair(self, positives: _Positives) -> Tensor:
        """Forms the pairs: positives of one annotation in different replicas."""
        visible = positives.visibility >= self.lt_options.min_visibility
        visible = visible & is_invertible(positives.matrices)
        group_ids = groups_across_replicas(positives.source_ids, positives.replicas,
                                           visible)
        if self.lt_options.pairing == 'gt_nearest':
            with torch.no_grad():
                distances = self._distances_to_annotation(positives)
            group_ids = nearest_in_each_replica(group_ids, positives.replicas, distances)
        return group_ids

    def _distances_to_annotation(self, positives: _Positives) -> Tensor:
        """(P,) distance in source pixels of restored RoIs to restored annotations."""
        restored = boxes_to_source(positives.priors, positives.matrices)
        annotated = boxes_to_source(positives.gt_bboxes, positives.matrices)
        return (restored - annotated).norm(dim=1)

    def _box_term(self, deltas: Tensor, group_ids: Tensor, positives: _Positives,
                  avg_factor: int) -> Tensor:
        """Box term of the positives' decoded boxes, restored to the source image.

        Boxes of rotated or sheared replicas are not restored exactly; they stay out.
        """
        if not self.reg_class_agnostic:
            size = self.bbox_coder.encode_size
            each = deltas.unflatten(1, (deltas.shape[1] // size, size))
            deltas = each[torch.arange(len(each), device=each.device), positives.labels]
        with torch.autocast(deltas.device.type, enabled=False):
            boxes = self.bbox_coder.decode(positives.priors.float(), deltas.float())
            restored = boxes_to_source(boxes, positives.matrices)
        exact = is_axis_aligned(positives.matrices)
        return box_consistency(
            restored, torch.where(exact, group_ids, UNPAIRED),
            detach_mean=self.lt_options.detach_mean, avg_factor=avg_factor)


class RoIConsistency(ConsistencyHead):
    """Front of a RoI head: checks what only the data samples can tell."""

    def loss(self, x: Tuple[Tensor], rpn_results_list: List[InstanceData],
             batch_data_samples: List[Any]) -> Dict[str, Tensor]:
        for sample in batch_data_samples:
            _refuse_moved_batch(sample)
        losses = super().loss(x, rpn_results_list, batch_data_samples)
        if 'loss_lt_cls' not in losses:
            raise UnsupportedHeadError(
                f'{type(self).__name__} does not use bbox_head.loss_and_target, so the '
                'consistency term was not added; wrap a StandardRoIHead or a subclass '
                'that keeps its bbox_loss')
        return losses


def _record_of(sampled: SamplingResult) -> InstanceData:
    if not hasattr(sampled, 'gt_record'):
        raise MissingRecordError(
            'the RoI sampler does not pass on the sources of the positives; wrap the '
            "whole RoI head, roi_head=dict(type='lt_mm.LossTransformHead', head=<stock "
            'roi_head>), or its sampler: train_cfg.rcnn.sampler = '
            "dict(type='lt_mm.SourceTrackingSampler', sampler=<stock sampler>)")
    return sampled.gt_record


def _refuse_moved_batch(sample: Any) -> None:
    """Batch augments resize images after the pipeline, behind the record's back."""
    recorded = sample.get('recorded_shape')
    if recorded is not None and tuple(sample.img_shape[:2]) != tuple(recorded):
        raise MissingRecordError(
            f'an image of the batch is {tuple(sample.img_shape[:2])} (height, width), '
            f'but left the pipeline as {tuple(recorded)}: a batch augment resized it, '
            'so its matrices no longer hold; remove BatchSyncRandomResize or '
            'BatchResize from model.data_preprocessor.batch_augments and resize in '
            "the pipeline, dict(type='RandomResize', ...)")


def _gather(sampling_results: List[SamplingResult],
            records: List[InstanceData]) -> _Positives:
    """Collects the positives; images are laid out as positives, then negatives."""
    device = sampling_results[0].pos_priors.device
    first_row, first_instance = 0, 0
    rows, replicas, instances = [], [], []
    for image, sampled in enumerate(sampling_results):
        count = len(sampled.pos_priors)
        rows.append(torch.arange(first_row, first_row + count, device=device))
        replicas.append(torch.full((count, ), image, device=device))
        instances.append(sampled.pos_assigned_gt_inds.long() + first_instance)
        first_row += count + len(sampled.neg_priors)
        first_instance += len(records[image].source_ids)

    def of_positives(name: str) -> Tensor:
        return torch.cat([
            record[name][sampled.pos_assigned_gt_inds.long()]
            for record, sampled in zip(records, sampling_results)
        ])

    def sampled_as(name: str) -> Tensor:
        return torch.cat([getattr(sampled, name) for sampled in sampling_results])

    return _Positives(
        rows=torch.cat(rows),
        replicas=torch.cat(replicas),
        instances=torch.cat(instances),
        source_ids=of_positives('source_ids'),
        matrices=of_positives('source_matrices'),
        visibility=of_positives('visibility'),
        labels=sampled_as('pos_gt_labels'),
        priors=sampled_as('pos_priors'),
        gt_bboxes=sampled_as('pos_gt_bboxes'),
        num_instances=first_instance)


def _wrap_bbox_head(head: BBoxHead, options: ConsistencyOptions) -> nn.Module:
    if type(head).loss_and_target is not BBoxHead.loss_and_target:
        raise UnsupportedHeadError(
            f'{type(head).__name__} has a loss of its own; expected a BBoxHead that '
            'keeps BBoxHead.loss_and_target, such as Shared2FCBBoxHead')
    if head.custom_activation or not hasattr(head.loss_cls, 'use_sigmoid'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} classifies with {type(head.loss_cls).__name__}, '
            'whose scores are neither a softmax nor sigmoids over the logits; use '
            "loss_cls=dict(type='CrossEntropyLoss', ...)")
    if hasattr(head, 'num_instance') or hasattr(head, 'fc_cls_ref'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} predicts several instances for one RoI, so its '
            'predictions cannot be grouped by instance; use Shared2FCBBoxHead')
    return add_consistency(BBoxConsistency, head, options)


def _wrap_roi_head(head: StandardRoIHead, options: ConsistencyOptions) -> nn.Module:
    if not isinstance(getattr(head, 'bbox_head', None), BBoxHead):
        raise UnsupportedHeadError(
            f'{type(head).__name__} has no single BBoxHead; expected a StandardRoIHead '
            "or a subclass with bbox_head=dict(type='Shared2FCBBoxHead', ...)")
    _wrap_bbox_head(head.bbox_head, options)
    if head.bbox_sampler is not None:  # None where the config has no train_cfg
        head.bbox_sampler = SourceTrackingSampler(head.bbox_sampler)
    return add_consistency(RoIConsistency, head, options)


register_wrap(lambda head: isinstance(head, BBoxHead), _wrap_bbox_head)
register_wrap(lambda head: isinstance(head, StandardRoIHead), _wrap_roi_head)
