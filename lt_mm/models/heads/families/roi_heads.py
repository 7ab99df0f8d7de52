"""The consistency term on the RoI heads and box heads of MMDetection's two-stage detectors."""

from typing import Any

import torch
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    PISARoIHead,
    SCNetRoIHead,
    StandardRoIHead,
    TridentRoIHead,
)
from mmdet.models.roi_heads.bbox_heads import BBoxHead, DIIHead, SABLHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.candidates import Detections
from lt_mm.models.heads.detections import DetectionConsistency
from lt_mm.models.heads.families.mask_head import MaskConsistency
from lt_mm.models.heads.families.roi_sampler import (
    SourceTrackingSampler,
    heads_of,
    records_of,
    wrapped_heads,
)
from lt_mm.models.heads.head_families import family_of, register_head_family
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.record import ImageRecord, refuse_moved_image
from lt_mm.structures.supervision import LEAVES_OUT_UNLABELLED, Supervision

# Stock RoI heads with supported box heads, whose own steps the term does not survive.
_REFUSED = {
    TridentRoIHead: 'is given each image once for every branch, and predictions for one and the '
    'same image are no replicas; expected a StandardRoIHead'
}


@register_head_family(BBoxHead)
class BBoxConsistency(DetectionConsistency):
    """Mixin of a box head of a two-stage detector."""

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Refuses box heads with a loss or a classifier of their own kind."""
        name = type(head).__name__
        if type(head).loss_and_target is not BBoxHead.loss_and_target:
            raise UnsupportedHeadError(
                f'{name} has a loss of its own; expected a BBoxHead that '
                'keeps BBoxHead.loss_and_target, such as Shared2FCBBoxHead'
            )
        if not hasattr(head.loss_cls, 'use_sigmoid'):
            raise UnsupportedHeadError(
                f'{name} classifies with {type(head.loss_cls).__name__}, '
                'whose scores are neither a softmax nor sigmoids over the logits; use '
                "loss_cls=dict(type='CrossEntropyLoss', ...)"
            )
        if hasattr(head, 'num_instance') or hasattr(head, 'fc_cls_ref'):
            raise UnsupportedHeadError(
                f'{name} predicts several instances for one RoI, so its '
                'predictions cannot be grouped by instance; use Shared2FCBBoxHead'
            )

    def loss_and_target(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        *args: Any,
        **kwargs: Any,
    ) -> dict:
        result = self._lt_stock_losses(
            cls_score, bbox_pred, rois, sampling_results, *args, **kwargs
        )
        self.lt_add_roi_terms(cls_score, bbox_pred, rois, sampling_results, result['loss_bbox'])
        return result

    def lt_add_roi_terms(
        self,
        cls_score: Tensor,
        bbox_pred: Any,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        losses: dict[str, Any],
    ) -> None:
        """Adds the terms to the losses of a box head."""
        with_cls, with_reg = (getattr(self, name, True) for name in ('with_cls', 'with_reg'))

        def decode(rows: Tensor, labels: Tensor) -> Tensor:
            return self.lt_decode(bbox_pred, rois[:, 1:], rows, labels)

        # Images are laid out as positives, then negatives.
        detections = Detections(
            logits=self.lt_class_logits(cls_score) if with_cls else None,
            decode=decode if with_reg else None,
            counts=[len(sampled.priors) for sampled in sampling_results],
            records=records_of(sampling_results),
            positives=[
                torch.arange(len(sampled.pos_priors), device=rois.device)
                for sampled in sampling_results
            ],
            annotations=[sampled.pos_assigned_gt_inds.long() for sampled in sampling_results],
            sigmoid=with_cls and self.loss_cls.use_sigmoid,
            avg_factor=max(len(rois), 1),
            priors=rois[:, 1:],
            given=[sampled.pos_is_gt.bool() for sampled in sampling_results],
        )
        self.lt_add_terms(detections, losses)

    def _lt_stock_losses(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        rois: Tensor,
        sampling_results: list[SamplingResult],
        rcnn_train_cfg: Any,
        *args: Any,
        **kwargs: Any,
    ) -> dict:
        """What the stock head gives, with the losses of the supervised images alone."""
        stock = super().loss_and_target
        supervision = Supervision.of(records_of(sampling_results), self.lt_options.supervise)
        if supervision.is_stock:
            return stock(
                cls_score, bbox_pred, rois, sampling_results, rcnn_train_cfg, *args, **kwargs
            )
        rows = supervision.rows_of([len(each.priors) for each in sampling_results], rois.device)
        result = stock(
            None if cls_score is None else cls_score[rows],
            None if bbox_pred is None else bbox_pred[rows],
            rois[rows],
            [sampling_results[image] for image in supervision.supervised_images],
            rcnn_train_cfg,
            *args,
            **kwargs,
        )
        # The next stage of a cascade refines the boxes of all images.
        return {**result, 'bbox_targets': self.get_targets(sampling_results, rcnn_train_cfg)}

    def lt_class_logits(self, cls_score: Tensor) -> Tensor:
        """(N, C) logits of a softmax or of sigmoids, whatever the stock loss makes of scores."""
        if not self.custom_activation:
            return cls_score
        if self.loss_cls.use_sigmoid:
            return cls_score[:, : self.num_classes]
        probabilities = self.loss_cls.get_activation(cls_score.float())
        return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()

    def lt_decode(self, bbox_pred: Any, priors: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Boxes (P, 4) of rows (P,) of the predictions, of classes (P,)."""
        deltas = bbox_pred[rows]
        if not self.reg_class_agnostic:
            size = self.bbox_coder.encode_size
            each = deltas.unflatten(1, (deltas.shape[1] // size, size))
            deltas = each[torch.arange(len(each), device=each.device), labels]
        return self.bbox_coder.decode(priors[rows].float(), deltas.float())


@register_head_family(SABLHead)
class SABLConsistency(BBoxConsistency):
    """Mixin of SABL heads, which say the sides of a box by buckets and offsets in them."""

    def lt_decode(self, bbox_pred: Any, priors: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        predicted = [sides[rows].float() for sides in bbox_pred]
        return self.bbox_coder.decode(priors[rows].float(), predicted)[0]


@register_head_family(DIIHead)
class DIIConsistency(DetectionConsistency):
    """Mixin of the box heads of Sparse R-CNN and QueryInst, whose RoIs are queries."""

    # The stages hand their queries on, image by image, with the targets.
    lt_splits_batches = False

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Refuses subclasses with a loss of their own."""
        if type(head).loss_and_target is not DIIHead.loss_and_target:
            raise UnsupportedHeadError(
                f'{type(head).__name__} has a loss of its own; expected a DIIHead that keeps '
                'loss_and_target'
            )

    def loss_and_target(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        sampling_results: list[SamplingResult],
        *args: Any,
        **kwargs: Any,
    ) -> dict:
        result = super().loss_and_target(cls_score, bbox_pred, sampling_results, *args, **kwargs)
        positives = [sampled.pos_inds for sampled in sampling_results]
        num_positives = cls_score.new_tensor(float(sum(map(len, positives))))
        detections = Detections(
            logits=cls_score,
            decode=lambda rows, labels: bbox_pred[rows].float(),
            counts=[len(sampled.priors) for sampled in sampling_results],
            records=records_of(sampling_results),
            positives=positives,
            annotations=[sampled.pos_assigned_gt_inds.long() for sampled in sampling_results],
            sigmoid=self.loss_cls.use_sigmoid,
            avg_factor=max(reduce_mean(num_positives).item(), 1),
        )
        self.lt_add_terms(detections, result['loss_bbox'])
        return result


@register_head_family(StandardRoIHead)
class RoIConsistency(ConsistencyMixin):
    """Mixin of a RoI head: checks what only the data samples can tell."""

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Refuses RoI heads without a BBoxHead, and those that go past its loss."""
        boxes = heads_of(head, 'bbox_head')
        if not boxes or not all(isinstance(box_head, BBoxHead) for box_head in boxes):
            raise UnsupportedHeadError(
                f'{type(head).__name__} has no BBoxHead; expected a StandardRoIHead, a '
                'CascadeRoIHead or a subclass with '
                "bbox_head=dict(type='Shared2FCBBoxHead', ...)"
            )
        for kind, reason in _REFUSED.items():
            if isinstance(head, kind):
                raise UnsupportedHeadError(f'{type(head).__name__} {reason}')

    @classmethod
    def lt_wrap(cls, head: Any, options: ConsistencyOptions) -> nn.Module:
        """Wraps the box heads, the mask heads and the samplers in a RoI head, and itself."""
        cls.lt_check(head)
        for box_head in heads_of(head, 'bbox_head'):
            family_of(box_head).lt_wrap(box_head, options)
        for mask_head in heads_of(head, 'mask_head'):
            MaskConsistency.lt_wrap(mask_head, options)
        # Without train_cfg a RoI head has no sampler.
        if isinstance(head.bbox_sampler, list):
            head.bbox_sampler = [SourceTrackingSampler(own) for own in head.bbox_sampler]
        elif head.bbox_sampler is not None:
            head.bbox_sampler = SourceTrackingSampler(head.bbox_sampler)
        return cls.lt_add(head, options)

    def loss(
        self, x: tuple[Tensor], rpn_results_list: list[InstanceData], batch_data_samples: list[Any]
    ) -> dict[str, Tensor]:
        supervision = Supervision.of(batch_data_samples, self.lt_options.supervise)
        for head in wrapped_heads(self):
            head.lt_check_split(supervision)
        for sample, proposals in zip(batch_data_samples, rpn_results_list):
            refuse_moved_image(sample)
            _check_proposals(sample, proposals)
        losses = super().loss(x, rpn_results_list, batch_data_samples)
        for key in self._lt_keys_of_terms():
            if key not in losses:
                raise UnsupportedHeadError(
                    f'{type(self).__name__} does not use loss_and_target of its wrapped '
                    f'heads: {key} was not added; wrap a StandardRoIHead, a '
                    'CascadeRoIHead, or a subclass that keeps bbox_loss and mask_loss'
                )
        return losses

    def _lt_keys_of_terms(self) -> list[str]:
        kinds = {DetectionConsistency: 'cls', MaskConsistency: 'mask'}
        return [
            f'loss_lt_{kind}'
            for head in wrapped_heads(self)
            for mixin, kind in kinds.items()
            if isinstance(head, mixin)
        ]


def _check_proposals(sample: Any, proposals: InstanceData) -> None:
    is_labelled = ImageRecord.read(sample).is_labelled
    if not is_labelled and not proposals.get(LEAVES_OUT_UNLABELLED, False):
        raise UnsupportedHeadError(
            'there are unlabelled images in the batch, and the region proposal network is not '
            'wrapped, so it was trained to find nothing in them; expected model.rpn_head = '
            "dict(_delete_=True, type='lt_mm.LossTransformHead', head=_base_.model.rpn_head, "
            'rho=0.0), or a rho above 0 for a term of its own'
        )


@register_head_family(CascadeRoIHead)
class CascadeConsistency(RoIConsistency):
    """Mixin of a cascade, whose losses carry the stage before their name."""

    def _lt_keys_of_terms(self) -> list[str]:
        # Without a proposal the stock cascade ends after a stage; the first one is run.
        return [f's0.{key}' for key in super()._lt_keys_of_terms()]


@register_head_family(PISARoIHead)
class PISAConsistency(RoIConsistency):
    """Mixin of the RoI head of PISA, which goes past ``loss_and_target`` of its box head."""

    def bbox_loss(
        self, x: tuple[Tensor], sampling_results: list[SamplingResult], *args: Any, **kwargs: Any
    ) -> dict:
        results = super().bbox_loss(x, sampling_results, *args, **kwargs)
        self.bbox_head.lt_add_roi_terms(
            results['cls_score'],
            results['bbox_pred'],
            bbox2roi([sampled.priors for sampled in sampling_results]),
            sampling_results,
            results['loss_bbox'],
        )
        return results


@register_head_family(SCNetRoIHead)
class SCNetConsistency(CascadeConsistency):
    """Mixin of the RoI head of SCNet, which has one mask head and hands on its stock loss alone."""

    def mask_loss(self, *args: Any, **kwargs: Any) -> dict:
        results = super().mask_loss(*args, **kwargs)
        self._lt_of_masks = {
            key: value for key, value in results['loss_mask'].items() if 'lt_' in key
        }
        return results

    def loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        losses = super().loss(*args, **kwargs)
        weight = sum(self.stage_loss_weights)
        for key, value in self._lt_of_masks.items():
            losses[key] = weight * value if 'loss' in key else value
        return losses

    def _lt_keys_of_terms(self) -> list[str]:
        return [key for key in super()._lt_keys_of_terms() if not key.endswith('mask')]
