"""The consistency term on MMDetection's single-stage heads: what their families share.

A dense head assigns its predictions in a method that is called while its ``loss_by_feat``
runs, such as ``_get_targets_single`` once an image. The mixin reads there which predictions
became positives of which annotation, and adds the terms to the losses. A family names that
method, and tells how the targets and the boxes of its heads are laid out.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from lt_mm.core.pairing import annotation_of_target, best_of_annotations
from lt_mm.models.heads.candidates import Detections
from lt_mm.models.heads.detections import DetectionConsistency
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.record import InstanceRecord, refuse_moved_image
from lt_mm.structures.supervision import LEAVES_OUT_UNLABELLED, Supervision

# A subclass that overrides one of these, or the method that the family reads, may lay out its
# predictions in another way.
_READ_METHODS = ('loss_by_feat', '_get_targets_single', 'loss_by_feat_single')
# What ``loss_by_feat`` calls the logits of what class scores are multiplied by in prediction.
_FACTORS = ('centernesses', 'iou_preds', 'objectnesses')


@dataclass
class Assigned:
    """The positives of one image, p in all.

    Attributes:
        rows: (p,) int64, predictions of the image.
        annotations: (p,) int64, the annotation of each.
        avg_factor: What the image adds to the divisor of the stock loss.
    """

    rows: Tensor
    annotations: Tensor
    avg_factor: float


class DenseConsistency(DetectionConsistency):
    """Base of the mixins of dense heads.

    A family gives :meth:`lt_assigned` and :meth:`lt_box_decoder`, and where its heads differ
    from the usual :meth:`lt_class_logits`, :meth:`lt_score_factors`, :meth:`lt_objectness`,
    :meth:`lt_is_sigmoid` and :meth:`lt_compared`.

    Attributes:
        lt_reads: The method of the stock head that tells the positives. It is called for one
            image after the other, or once for the batch. None where nothing is read.
        lt_averages_positives: Whether the stock loss is divided by the mean number of
            positives over the ranks, rather than by this rank's.
    """

    lt_reads: str | None = '_get_targets_single'
    lt_averages_positives = True
    lt_takes_teacher = True

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Refuses heads that compute their loss or their targets in a way of their own."""
        own, read = type(head), dict.fromkeys((*_READ_METHODS, cls.lt_reads or _READ_METHODS[0]))
        for stock in cls.lt_heads:
            if isinstance(head, stock) and all(
                getattr(own, name, None) is getattr(stock, name, None) for name in read
            ):
                return
        raise UnsupportedHeadError(
            f'{own.__name__} computes its loss or its targets in a way of its own, so '
            'its predictions cannot be grouped by instance; expected '
            f'{", ".join(stock.__name__ for stock in cls.lt_heads)} or a subclass that keeps '
            f'{", ".join(read)}. Leave this head as it is: '
            f"bbox_head=dict(type='{own.__name__}', ...)"
        )

    def lt_assigned(self, targets: Any, arguments: dict[str, Any]) -> Assigned | list[Assigned]:
        """The positives of an image, or of all images of the batch.

        Args:
            targets: What the method that is read returned.
            arguments: Its arguments by name.
        """
        raise NotImplementedError

    def lt_box_decoder(self, arguments: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """How boxes are decoded.

        Args:
            arguments: Those of ``loss_by_feat`` by name; B images with n predictions each.

        Returns:
            Function of rows (P,) of all B * n predictions and of their labels (P,) that gives
            boxes (P, 4) in pixels of the replicas, with gradient.
        """
        raise NotImplementedError

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        """(B, n, C) class logits, from the arguments of ``loss_by_feat``."""
        return flatten_levels(arguments['cls_scores'], self.cls_out_channels)

    def lt_score_factors(self, arguments: dict[str, Any]) -> Tensor | None:
        """(B, n) what class scores are multiplied by in prediction; None where by nothing."""
        for name in _FACTORS:
            if name in arguments:
                return flatten_levels(arguments[name], 1).squeeze(2).sigmoid()
        return None

    def lt_objectness(self, arguments: dict[str, Any]) -> Tensor | None:
        """(B, n) logits of the objectness, for heads whose stock loss has one of its own."""
        return None

    def lt_is_sigmoid(self) -> bool:
        """Whether the stock loss takes the classes as independent Bernoullis."""
        return bool(self.loss_cls.use_sigmoid)

    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        """The positives of each image that are compared.

        Args:
            assigned: All that :meth:`lt_assigned` told, in the order of the calls.
            arguments: Those of ``loss_by_feat`` by name.
        """
        return assigned

    @property
    def lt_splits_batches(self) -> bool:  # type: ignore[override]  # of others it is a constant
        """Not where a mask head takes the positives of the whole batch from this head."""
        stock = BaseDenseHead.get_positive_infos
        return getattr(type(self), 'get_positive_infos', stock) is stock

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.lt_teacher is None:
            return super().forward(*args, **kwargs)
        return self.lt_forward(super().forward, *args, **kwargs)

    def lt_records(self, arguments: dict[str, Any]) -> list[InstanceData]:
        """The recorded ``gt_instances`` of each image, from the arguments of ``loss_by_feat``."""
        return arguments['batch_gt_instances']

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        arguments = inspect.signature(super().loss_by_feat).bind(*args, **kwargs).arguments
        metas = arguments['batch_img_metas']
        for gt_instances, meta in zip(self.lt_records(arguments), metas):
            InstanceRecord.read(gt_instances)
            refuse_moved_image(meta)
        supervision = Supervision.of(self.lt_records(arguments), self.lt_options.supervise)
        losses, assigned = self._lt_stock_losses(arguments, supervision)
        self.lt_add_terms(self.lt_detections(assigned, arguments), losses)
        return losses

    def loss_and_predict(self, *args: Any, **kwargs: Any) -> Any:
        losses, proposals = super().loss_and_predict(*args, **kwargs)
        for own in proposals:  # a RoI head looks for this on unlabelled images
            own.set_metainfo({LEAVES_OUT_UNLABELLED: True})
        return losses, proposals

    def _lt_stock_losses(
        self, arguments: dict[str, Any], supervision: Supervision
    ) -> tuple[dict[str, Any], list[Assigned]]:
        """The stock losses of the supervised images, and the positives of every image."""
        self.lt_check_split(supervision)
        if supervision.is_stock:
            return self._lt_assigning(arguments)
        images = supervision.supervised_images
        losses, own = self._lt_assigning(self._lt_selected(arguments, images))
        assigned = dict(zip(images, own))
        images = supervision.unsupervised_images
        if images:  # for their positives alone
            with torch.no_grad():
                _, others = self._lt_assigning(self._lt_selected(arguments, images))
            assigned.update(zip(images, others))
        # As many as on the others, so that n is that of a batch in which all are supervised.
        mean = sum(image.avg_factor for image in own) / len(own)
        none = own[0].rows[:0]
        return losses, [
            assigned.get(image, Assigned(none, none, mean))
            for image in range(len(supervision.labelled))
        ]

    def _lt_assigning(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Assigned]]:
        """The stock losses of some images, and their positives."""
        with self._lt_reading() as assigned:
            losses = super().loss_by_feat(**arguments)
        return losses, self.lt_compared(assigned, arguments)

    def _lt_selected(self, arguments: dict[str, Any], images: list[int]) -> dict[str, Any]:
        return {name: self.lt_select(name, value, images) for name, value in arguments.items()}

    def lt_select(self, name: str, value: Any, images: list[int]) -> Any:
        """The part of an argument of ``loss_by_feat`` that tells of some images of the batch.

        Args:
            name: Of the argument.
            value: What is given for the whole batch: a list with an entry for each image, if the
                name begins with ``batch_``; a tensor, or a list of tensors, one a level, with a
                row for each image; or something else, which stays.
            images: Which.
        """
        if name.startswith('batch_') and value is not None:
            return [value[image] for image in images]
        if isinstance(value, (list, tuple)):
            return [self.lt_select('', each, images) for each in value]
        return value[images] if isinstance(value, Tensor) else value

    @contextmanager
    def _lt_reading(self) -> Iterator[list[Assigned]]:
        """Collects what the stock head assigns meanwhile."""
        assigned: list[Assigned] = []
        if self.lt_reads is None:
            yield assigned
            return
        stock = getattr(self, self.lt_reads)
        signature = inspect.signature(stock)

        def reading(*args: Any, **kwargs: Any) -> Any:
            targets = stock(*args, **kwargs)
            found = self.lt_assigned(targets, signature.bind(*args, **kwargs).arguments)
            assigned.extend(found if isinstance(found, list) else [found])
            return targets

        setattr(self, self.lt_reads, reading)
        try:
            yield assigned
        finally:
            delattr(self, self.lt_reads)

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        """What the head predicted for all images, from the arguments of ``loss_by_feat``.

        Args:
            assigned: The positives of each image that are compared.
            arguments: Of the whole batch.
        """
        logits = self.lt_class_logits(arguments)
        with torch.no_grad():
            factors = self.lt_score_factors(arguments)
        objectness = self.lt_objectness(arguments)
        return Detections(
            logits=logits.flatten(0, 1),
            decode=self.lt_box_decoder(arguments),
            counts=[logits.shape[1]] * len(logits),
            records=self.lt_records(arguments),
            positives=[image.rows for image in assigned],
            annotations=[image.annotations for image in assigned],
            sigmoid=self.lt_is_sigmoid(),
            score_factors=None if factors is None else factors.flatten(),
            objectness=None if objectness is None else objectness.flatten(),
            avg_factor=self._lt_avg_factor(
                sum(image.avg_factor for image in assigned), logits.device
            ),
        )

    def _lt_avg_factor(self, num_positives: float, device: torch.device) -> float:
        """The divisor n of the formula: the mean over the ranks, where the stock loss takes it."""
        if self.lt_averages_positives:
            num_positives = reduce_mean(torch.tensor(float(num_positives), device=device)).item()
        return max(num_positives, 1)


class SoftConsistency(DenseConsistency):
    """Mixin of heads without positives: all predictions near an annotation share its loss.

    Of each annotation one prediction is compared, the best by its score times its overlap.
    """

    lt_reads = None

    @torch.no_grad()
    def lt_compared(self, assigned: list[Assigned], arguments: dict[str, Any]) -> list[Assigned]:
        logits, decode = self.lt_class_logits(arguments), self.lt_box_decoder(arguments)
        scores = logits.float().sigmoid() if self.lt_is_sigmoid() else logits.float().softmax(-1)
        factors = self.lt_score_factors(arguments)
        if factors is not None:
            scores = self.lt_joint_scores(scores, factors.float()[..., None])
        found = []
        for image, gt_instances in enumerate(arguments['batch_gt_instances']):
            labels = gt_instances.labels
            rows = torch.arange(logits.shape[1], device=logits.device)
            boxes = decode(rows + image * len(rows), torch.zeros_like(rows))
            best = best_of_annotations(scores[image][:, labels], boxes, gt_instances.bboxes)
            annotations = torch.arange(len(labels), device=labels.device)
            found.append(Assigned(best, annotations, len(labels)))
        return found


def flatten_levels(levels: Sequence[Tensor], channels: int) -> Tensor:
    """Maps (B, A * channels, H, W) of all levels, as (B, n, channels)."""
    return torch.cat(
        [level.permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in levels], dim=1
    )


def strides_of(prior_generator: Any, levels: Sequence[Tensor]) -> Tensor:
    """(n,) stride in pixels of each point of all levels, one prior a point."""
    return torch.cat(
        [
            level.new_full((level[0, 0].numel(),), stride[0], dtype=torch.float32)
            for level, stride in zip(levels, prior_generator.strides)
        ]
    )


def widened(boxes: Tensor, sides: Tensor) -> Tensor:
    """Boxes (P, 4) around their centres, with sides of (P,) pixels at least.

    For heads whose boxes begin without any size: two such boxes are infinitely different.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    centres, halves = (low + high) / 2, torch.maximum((high - low) / 2, sides[:, None] / 2)
    return torch.cat([centres - halves, centres + halves], dim=1)


def foreground(labels: Tensor, num_classes: int) -> Tensor:
    """Rows of the positives among the labels (n,) of an image."""
    return ((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)


def assigned_by_target(
    rows: Tensor, boxes: Tensor, labels: Tensor, gt_instances: InstanceData
) -> Assigned:
    """Positives whose annotation is found by the box that they are to reach.

    Args:
        rows: (p,) int64, predictions of the image.
        boxes: (p, 4), the box that each is to reach; pixels of the image.
        labels: (p,) int64, the class that each is to have.
        gt_instances: The annotations of the image.
    """
    annotations = annotation_of_target(boxes, labels, gt_instances.bboxes, gt_instances.labels)
    return Assigned(rows, annotations, len(rows))
