"""How the record of a replica reaches the heads of a two-stage detector.

The stock RoI head gives each image's ``gt_instances`` to its RoI sampler.
:class:`SourceTrackingSampler` wraps that sampler and attaches them to the
``SamplingResult``, which the stock RoI head then hands to ``loss_and_target`` of its heads.
"""

from typing import Any

from mmdet.models.task_modules.assigners import AssignResult
from mmdet.models.task_modules.samplers import SamplingResult
from mmengine.structures import InstanceData
from torch import nn

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.head_families import family_of
from lt_mm.registry import TASK_UTILS, register
from lt_mm.structures.errors import MissingRecordError, UnsupportedHeadError
from lt_mm.structures.record import ImageRecord, InstanceRecord


@register(TASK_UTILS)
class SourceTrackingSampler:
    """A stock RoI sampler whose results know the source of every positive.

    Below a RoI head of which only the box or mask head is wrapped, it also adds the RoI
    head's own mixin to it, so that both forms of the config make the same checks.

    Args:
        sampler: Config of the stock sampler, or a built one.
        context: The RoI head, as it gives itself to its sampler; handed on to the stock
            sampler.
        **kwargs: Further arguments of the stock sampler.
    """

    def __init__(self, sampler: Any, context: Any = None, **kwargs: Any) -> None:
        if isinstance(sampler, dict):
            sampler = TASK_UTILS.build(sampler, default_args=dict(context=context, **kwargs))
        self.sampler = sampler
        wrapped = wrapped_heads(context)
        if wrapped and not isinstance(context, ConsistencyMixin):
            family_of(context).lt_add(context, wrapped[0].lt_options)

    def sample(
        self,
        assign_result: Any,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        **kwargs: Any,
    ) -> Any:
        """Samples as the stock sampler does; attaches ``gt_record`` to the result.

        Returns:
            What the stock sampler does: the result, or it and something else, such as the weights
            of ``ScoreHLRSampler``.

        Raises:
            MissingRecordError: If ``gt_instances`` carries no record.
            UnsupportedHeadError: If the stock sampler gives no SamplingResult.
        """
        if not ImageRecord.read(gt_instances).is_labelled:
            assign_result, pred_instances = self._most_confident(assign_result, pred_instances)
        given = self.sampler.sample(assign_result, pred_instances, gt_instances, **kwargs)
        result = given[0] if isinstance(given, tuple) else given
        if not isinstance(result, SamplingResult):
            raise UnsupportedHeadError(
                f'{type(self.sampler).__name__} gives no SamplingResult; '
                "expected a sampler such as dict(type='RandomSampler', ...)"
            )
        InstanceRecord.read(gt_instances)
        result.gt_record = gt_instances
        return given

    def _most_confident(
        self, assign_result: AssignResult, proposals: InstanceData
    ) -> tuple[AssignResult, InstanceData]:
        """As many proposals of an unlabelled image as the stock sampler takes, the first ones.

        They come in the order of their scores. The stock sampler then draws no random numbers,
        so those of the labelled images are the same as without it.
        """
        kept = slice(self.sampler.num)
        return (
            AssignResult(
                assign_result.num_gts,
                assign_result.gt_inds[kept],
                assign_result.max_overlaps[kept],
                assign_result.labels[kept],
            ),
            proposals[kept],
        )


def records_of(sampling_results: list[SamplingResult]) -> list[InstanceData]:
    """The recorded ``gt_instances`` of each image.

    Raises:
        MissingRecordError: If the RoI sampler is not a SourceTrackingSampler.
    """
    for sampled in sampling_results:
        if not hasattr(sampled, 'gt_record'):
            raise MissingRecordError(
                'the RoI sampler does not pass on the sources of the positives; wrap the '
                "whole RoI head, roi_head=dict(type='lt_mm.LossTransformHead', "
                'head=<stock roi_head>), or its sampler: train_cfg.rcnn.sampler = '
                "dict(type='lt_mm.SourceTrackingSampler', sampler=<stock sampler>)"
            )
    return [sampled.gt_record for sampled in sampling_results]


def heads_of(roi_head: nn.Module, name: str) -> list[nn.Module]:
    """The box or mask heads of a RoI head: one, or one a stage."""
    heads = getattr(roi_head, name, None)
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def wrapped_heads(roi_head: nn.Module) -> list[Any]:
    """The box and mask heads of a RoI head that have the term."""
    heads = heads_of(roi_head, 'bbox_head') + heads_of(roi_head, 'mask_head')
    return [head for head in heads if isinstance(head, ConsistencyMixin)]
