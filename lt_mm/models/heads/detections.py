"""The consistency term on detections: what RoI heads and dense heads have in common.

A front hands over what its head predicted for the batch as :class:`Detections`;
:class:`DetectionConsistency` forms the pairs and adds the terms.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lt_mm.core.consistency import box_consistency
from lt_mm.core.geometry import boxes_to_source, is_axis_aligned, is_invertible
from lt_mm.core.pairing import (
    UNPAIRED,
    groups_across_replicas,
    iou_groups,
    is_paired,
    nearest_in_each_replica,
)
from lt_mm.models.heads.loss_transform_head import ConsistencyHead, paired_share
from lt_mm.models.heads.ranks import OwnRank
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import image_matrices, source_ids_of


@dataclass
class Detections:
    """What a head predicts for a batch: N predictions, image after image.

    Attributes:
        logits: (N, C) class logits, or None; receives gradient.
        decode: Function of rows (P,) and class labels (P,) that gives the boxes (P, 4)
            of these predictions, pixels of their replicas, with gradient; None for
            heads without boxes.
        counts: Number of predictions of each image.
        records: The recorded ``gt_instances`` of each image.
        positives: For each image (p,) int64, the predictions of that image, counted
            from 0, that the stock loss assigned to an annotation.
        annotations: For each image (p,) int64, which annotation.
        sigmoid: Whether the classes are independent Bernoullis.
        avg_factor: n of the formula, as the stock loss counts it.
    """

    logits: Tensor | None
    decode: Callable[[Tensor, Tensor], Tensor] | None
    counts: list[int]
    records: list[InstanceData]
    positives: list[Tensor]
    annotations: list[Tensor]
    sigmoid: bool
    avg_factor: float


@dataclass
class Candidates:
    """The predictions of this rank that may pair, P in all.

    Attributes:
        rows: (P,) int64, rows of the head's N predictions.
        labels: (P,) int64 classes: annotated ones, or predicted ones with 'iou'.
        matrices: (P, 3, 3) float64, view from the source to the replica.
        ranks: What joins them with those of other ranks, Q in all; Q = P without
            ``across_ranks``.
        group_ids: (Q,) int64, the pairing.
        share: Scalar, the share of the instances (with 'iou': of the candidates) that
            have a pair.
    """

    rows: Tensor
    labels: Tensor
    matrices: Tensor
    ranks: OwnRank
    group_ids: Tensor
    share: Tensor


class DetectionConsistency(ConsistencyHead):
    """Base of the fronts of heads that predict classes and boxes of instances."""

    def _add_terms(self, detections: Detections, losses: dict[str, Any]) -> None:
        self._watch_groups(source_ids_of(detections.records), detections.positives[0].device)
        candidates = self._pair(detections)
        detections.avg_factor = candidates.ranks.total(detections.avg_factor)
        if detections.logits is not None:
            self._term(
                'cls',
                lambda: self._class_term(
                    candidates.ranks.join(detections.logits[candidates.rows]),
                    candidates.group_ids,
                    detections.sigmoid,
                    avg_factor=detections.avg_factor,
                ),
                losses,
            )
        if detections.decode is not None:
            self._term('bbox', lambda: self._box_term(detections, candidates), losses)
        paired = candidates.ranks.own(is_paired(candidates.group_ids))
        losses['lt_num_pairs'] = paired.sum().float()
        losses['lt_paired_share'] = candidates.share
        if self.lt_recorder is not None and detections.decode is not None:
            self.lt_recorder(self._pair_record(detections, candidates, paired))

    @torch.no_grad()
    def _pair_record(
        self, detections: Detections, candidates: Candidates, paired: Tensor
    ) -> PairRecord:
        """With 'iou' only of those confident enough to pair."""
        device, rows = paired.device, candidates.rows
        images = torch.arange(len(detections.counts), device=device).repeat_interleave(
            torch.tensor(detections.counts, device=device)
        )[rows]
        scores, labels = torch.ones_like(rows, dtype=torch.float32), candidates.labels
        if detections.logits is not None:
            scores, labels = (each[rows] for each in self._confidence(detections))
        is_candidate = torch.ones_like(paired)
        if self.lt_options.pairing == 'iou':
            sources = torch.tensor(source_ids_of(detections.records), device=device)
            sources = sources[images]
            is_candidate = paired | (scores >= self.lt_options.score_threshold)
        else:
            sources = of_annotations('source_ids', detections.records, detections.annotations)[:, 0]
        boxes = self._boxes(detections, candidates)
        record = PairRecord(
            kind='bbox',
            images=images,
            source_ids=sources,
            paired=paired,
            group_ids=candidates.ranks.own(candidates.group_ids),
            labels=labels,
            scores=scores,
            boxes=boxes,
            restored=boxes_to_source(boxes, candidates.matrices),
        )
        return record.rows(is_candidate.nonzero()[:, 0])

    def _pair(self, detections: Detections) -> Candidates:
        """The line where pairs are formed is in one of these two."""
        if self.lt_options.pairing == 'iou':
            return self._pair_by_iou(detections)
        return self._pair_by_annotation(detections)

    def _pair_by_annotation(self, detections: Detections) -> Candidates:
        """Positives of one annotation in different replicas."""
        records, annotations = detections.records, detections.annotations
        rows = rows_of_batch(detections.positives, detections.counts)
        ranks = self._exchange(len(rows), rows.device)
        group_ids, share = pair_annotations(
            records, annotations, self.lt_options.min_visibility, ranks
        )
        candidates = Candidates(
            rows=rows,
            labels=of_annotations('labels', records, annotations),
            matrices=of_annotations('source_matrices', records, annotations),
            ranks=ranks,
            group_ids=group_ids,
            share=share,
        )
        if self.lt_options.pairing == 'gt_nearest':
            annotated = of_annotations('bboxes', records, annotations)
            with torch.no_grad():
                distances = _distances(
                    self._boxes(detections, candidates), annotated, candidates.matrices
                )
            replicas = ranks.join(ranks.distinct(image_numbers(annotations)))
            candidates.group_ids = nearest_in_each_replica(
                group_ids, replicas, ranks.join(distances)
            )
        return candidates

    def _pair_by_iou(self, detections: Detections) -> Candidates:
        """Confident predictions whose restored boxes overlap most, class by class."""
        scores, labels = self._confidence(detections)
        counts = detections.counts
        kept = min(self.lt_options.max_candidates, max(counts))
        padded = pad_sequence(scores.split(counts), batch_first=True, padding_value=-1.0)
        best, columns = padded.topk(kept, dim=1)
        # A slot past the end of a short image is not confident; any row serves there.
        rows = rows_of_batch(list(columns), counts).clamp(max=len(scores) - 1)
        matrices = image_matrices(detections.records, scores.device)
        candidates = Candidates(
            rows=rows,
            labels=labels[rows],
            matrices=matrices.repeat_interleave(kept, dim=0),
            ranks=self._exchange(len(rows), rows.device),
            group_ids=torch.full_like(rows, UNPAIRED),
            share=scores.new_zeros(()),
        )
        valid = (best >= self.lt_options.score_threshold).flatten()
        with torch.no_grad():
            restored = boxes_to_source(self._boxes(detections, candidates), candidates.matrices)
        valid = valid & is_invertible(candidates.matrices)
        candidates.group_ids = pair_overlapping(
            restored,
            candidates.labels,
            valid,
            [kept] * len(counts),
            source_ids_of(detections.records),
            self.lt_options.iou_threshold,
            candidates.ranks,
        )
        paired = candidates.ranks.own(is_paired(candidates.group_ids))
        candidates.share = (paired.sum() / valid.sum().clamp(min=1)).float()
        return candidates

    @torch.no_grad()
    def _confidence(self, detections: Detections):
        """Score and class (N,) of every prediction's best class, background apart."""
        if detections.sigmoid:
            scores = detections.logits.float().sigmoid()
        else:
            scores = detections.logits.float().softmax(dim=1)
        return scores[:, : self.num_classes].max(dim=1)

    def _boxes(self, detections: Detections, candidates: Candidates) -> Tensor:
        """(P, 4) decoded boxes in float32, pixels of the replicas."""
        with torch.autocast(candidates.rows.device.type, enabled=False):
            return detections.decode(candidates.rows, candidates.labels).float()

    def _box_term(self, detections: Detections, candidates: Candidates) -> Tensor:
        """Box term of the decoded boxes, restored to the source image."""
        restored = boxes_to_source(self._boxes(detections, candidates), candidates.matrices)
        return box_consistency(
            candidates.ranks.join(restored),
            self._exact_groups(candidates),
            detach_mean=self.lt_options.detach_mean,
            avg_factor=detections.avg_factor,
        )

    def _exact_groups(self, candidates: Candidates) -> Tensor:
        """Group ids without the boxes of rotated or sheared replicas.

        Those are not restored exactly; they stay out of the box term.
        """
        exact = candidates.ranks.join(is_axis_aligned(candidates.matrices))
        return torch.where(exact, candidates.group_ids, UNPAIRED)


def pair_annotations(
    records: Sequence[InstanceData],
    annotations: Sequence[Tensor],
    min_visibility: float,
    ranks: OwnRank,
):
    """Forms the pairs of 'gt': one annotation in at least two replicas.

    Args:
        records: The recorded ``gt_instances`` of each image.
        annotations: For each image (p,) int64, the annotation of each prediction.
        min_visibility: Instances less visible pair with nothing.
        ranks: What joins the P predictions with those of other ranks, Q in all.

    Returns:
        (Q,) int64 group ids, and the share of this rank's instances with a pair.
    """
    visible = of_annotations('visibility', records, annotations) >= min_visibility
    visible = visible & is_invertible(of_annotations('source_matrices', records, annotations))
    group_ids = groups_across_replicas(
        ranks.join(of_annotations('source_ids', records, annotations)),
        ranks.join(ranks.distinct(image_numbers(annotations))),
        ranks.join(visible),
    )
    sizes = [len(record.source_ids) for record in records]
    share = paired_share(
        ranks.own(is_paired(group_ids)), rows_of_batch(annotations, sizes), sum(sizes)
    )
    return group_ids, share


def pair_overlapping(
    restored: Tensor,
    labels: Tensor,
    valid: Tensor,
    counts: list[int],
    source_ids: list[int],
    iou_threshold: float,
    ranks: OwnRank,
) -> Tensor:
    """Forms the pairs of 'iou': :func:`lt_mm.core.pairing.iou_groups` of a batch.

    Args:
        restored: (P, 4) boxes, image after image; pixels of the source images.
        labels: (P,) int64.
        valid: (P,) bool.
        counts: Number of boxes of each image.
        source_ids: Source of each image.
        iou_threshold: Smallest IoU with the mean of a group.
        ranks: What joins the P boxes with those of other ranks, Q in all.

    Returns:
        (Q,) int64 group ids.
    """
    restored, labels, valid = (ranks.join(own) for own in (restored, labels, valid))
    counts = ranks.join_numbers(counts)
    images = defaultdict(list)
    for image, source in enumerate(ranks.join_numbers(source_ids)):
        images[source].append(torch.tensor(image))
    members = pad_sequence(
        [torch.stack(own) for own in images.values()], batch_first=True, padding_value=UNPAIRED
    )
    boxes, classes, flags = (
        pad_sequence(values.split(counts), batch_first=True) for values in (restored, labels, valid)
    )
    groups = iou_groups(boxes, classes, flags, members.to(restored.device), iou_threshold)
    return torch.cat([own[:count] for own, count in zip(groups, counts)])


def of_annotations(
    name: str, records: Sequence[InstanceData], annotations: Sequence[Tensor]
) -> Tensor:
    """A field of the annotations of all predictions, image after image: (P, ...)."""
    return torch.cat([record[name][rows] for record, rows in zip(records, annotations)])


def image_numbers(per_image: Sequence[Tensor]) -> Tensor:
    """(P,) int64, the image of each entry of the lists."""
    return torch.cat([torch.full_like(rows, image) for image, rows in enumerate(per_image)])


def rows_of_batch(per_image: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """(P,) int64: rows that count from 0 in each image, counted through the batch."""
    first, rows = 0, []
    for own, count in zip(per_image, counts):
        rows.append(own + first)
        first += count
    return torch.cat(rows)


def _distances(boxes: Tensor, annotated: Tensor, matrices: Tensor) -> Tensor:
    """(P,) distance of restored boxes to restored annotations, source pixels."""
    restored = boxes_to_source(boxes, matrices)
    return (restored - boxes_to_source(annotated, matrices)).norm(dim=1)
