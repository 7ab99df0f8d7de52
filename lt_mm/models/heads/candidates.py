"""Which predictions for a batch may pair: those assigned to annotations, or the confident ones."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lt_mm.core.geometry import is_invertible, sides_at_border
from lt_mm.core.pairing import paired_share
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.models.memory import instance_checks
from lt_mm.structures.record import ImageRecord, image_matrices, image_sizes, source_ids_of


@dataclass
class Detections:
    """What a head predicts for a batch: N predictions, image after image.

    Attributes:
        logits: (N, C) class logits, or None; receives gradient.
        decode: Function of rows (P,) and class labels (P,) that gives the boxes (P, 4) of
            these predictions, pixels of their replicas, with gradient; None for heads
            without boxes.
        counts: Number of predictions of each image.
        records: The recorded ``gt_instances`` of each image.
        positives: For each image (p,) int64, the predictions of that image, counted from 0,
            that the stock loss assigned to an annotation.
        annotations: For each image (p,) int64, which annotation.
        sigmoid: Whether the classes are independent Bernoullis.
        avg_factor: n of the formula, as the stock loss counts it.
        score_factors: (N,) in [0, 1], by what class scores are multiplied in prediction,
            such as an objectness; None for heads without.
        objectness: (N,) logits of whether there is an object, for heads that predict this beside
            the classes; receives gradient.
        priors: (N, 4) boxes that each prediction is about, pixels of the replicas; for heads
            without ``decode``.
        given: For each image (p,) bool, which positives were made from the annotation itself
            (``add_gt_as_proposals`` of RoI samplers). They see the object in exactly the same
            frame in all replicas, as no prediction of the detector does, so they are the
            nearest of an annotation only where it has no other positive.
        distances: (P,), how far each positive is from its annotation; told by their boxes unless
            given.
    """

    logits: Tensor | None
    decode: Callable[[Tensor, Tensor], Tensor] | None
    counts: list[int]
    records: list[InstanceData]
    positives: list[Tensor]
    annotations: list[Tensor]
    sigmoid: bool
    avg_factor: float
    score_factors: Tensor | None = None
    objectness: Tensor | None = None
    priors: Tensor | None = None
    given: list[Tensor] | None = None
    distances: Tensor | None = None


@dataclass
class Annotated:
    """The annotations that P predictions of a batch were assigned to.

    Attributes:
        records: The recorded ``gt_instances`` of each image.
        annotations: For each image (p,) int64, the annotation of each of its predictions.
    """

    records: Sequence[InstanceData]
    annotations: Sequence[Tensor]

    def __getitem__(self, name: str) -> Tensor:
        """A field of the annotation of each prediction: (P, ...)."""
        return torch.cat(
            [record[name][rows] for record, rows in zip(self.records, self.annotations)]
        )

    @property
    def images(self) -> Tensor:
        """(P,) int64, the image of each prediction."""
        return torch.cat(
            [torch.full_like(rows, image) for image, rows in enumerate(self.annotations)]
        )

    @property
    def are_weak(self) -> Tensor:
        """(P,) bool, whether the image of each prediction is a weak copy."""
        return torch.cat(
            [
                torch.full_like(rows, ImageRecord.read(record).is_weak, dtype=torch.bool)
                for record, rows in zip(self.records, self.annotations)
            ]
        )

    @property
    def checks(self) -> Tensor:
        """(P,) int64, by which a memory knows the annotation of each prediction again."""
        return instance_checks(self['labels'], self['source_boxes'])

    def may_pair(self, min_visibility: float) -> Tensor:
        """(P,) bool, whether enough is visible, and comes back to the source."""
        visible = self['visibility'] >= min_visibility
        return visible & is_invertible(self['source_matrices'])

    def share_of_instances(self, paired: Tensor) -> Tensor:
        """Scalar, the share of all annotations that have a paired prediction."""
        sizes = [len(record.source_ids) for record in self.records]
        return paired_share(paired, rows_of_batch(self.annotations, sizes), sum(sizes))


@dataclass
class Candidates:
    """The predictions of a part of a batch that may pair, P in all.

    Attributes:
        rows: (P,) int64, rows of the head's N predictions.
        labels: (P,) int64 classes: annotated ones, or predicted ones with 'iou'.
        matrices: (P, 3, 3) float64, from pixels of the source to those of the replica.
        columns: What pairs and compares them; see :func:`form_pairs`.
        share: Function of which of them are paired, (P,) bool, that gives the logged share.
        whole_sides: Function of their restored boxes (P, 4) that gives which sides of these
            nothing cut, (P, 4) bool, as they lie in the source.
        boxes: (P, 4) pixels of the replicas; None for heads without boxes.
    """

    rows: Tensor
    labels: Tensor
    matrices: Tensor
    columns: dict[str, Tensor]
    share: Callable[[Tensor], Tensor]
    whole_sides: Callable[[Tensor], Tensor]
    boxes: Tensor | None = None


def assigned_to_annotations(detections: Detections, options: ConsistencyOptions) -> Candidates:
    """All positives."""
    annotated = Annotated(detections.records, detections.annotations)
    columns = dict(
        images=annotated.images,
        instances=annotated['source_ids'],
        may_pair=annotated.may_pair(options.min_visibility),
    )
    if options.memory is not None:
        columns['checks'] = annotated.checks
    return Candidates(
        rows=rows_of_batch(detections.positives, detections.counts),
        labels=annotated['labels'],
        matrices=annotated['source_matrices'],
        columns=columns,
        share=annotated.share_of_instances,
        whole_sides=lambda restored: ~annotated['cut_sides'],
    )


def most_confident(
    detections: Detections,
    options: ConsistencyOptions,
    images: Sequence[int],
    scores: Tensor,
    labels: Tensor,
) -> Candidates:
    """The most confident predictions of some images.

    Args:
        detections: Of the whole batch.
        options: Tell how confident, and how many.
        images: Which.
        scores: (N,) of each prediction's best class.
        labels: (N,) that class.
    """
    counts = detections.counts
    firsts = [0, *itertools.accumulate(counts)]
    kept = min(options.max_candidates, max(counts[image] for image in images))
    each = scores.split(counts)
    padded = pad_sequence([each[image] for image in images], batch_first=True, padding_value=-1.0)
    best, places = padded.topk(kept, dim=1)
    start = torch.tensor([firsts[image] for image in images], device=places.device)
    # A slot past the end of a short image is not confident; any row serves there.
    rows = (places + start[:, None]).flatten().clamp(max=len(scores) - 1)
    of_batch = torch.tensor(images, device=rows.device).repeat_interleave(kept)
    records = [detections.records[image] for image in images]
    matrices = image_matrices(records, scores.device).repeat_interleave(kept, dim=0)
    thresholds = torch.tensor(_score_thresholds(records, options), device=best.device)
    confident = (best >= thresholds[:, None]).flatten()
    may_pair = confident & is_invertible(matrices)
    sizes, source_sizes = (
        image_sizes(records, name, scores.device).repeat_interleave(kept, dim=0)
        for name in ('recorded_shape', 'source_shape')
    )
    # The copies of a weak one are to become sure of what it shows.
    paired_labels = labels[rows]
    if options.weak_target is not None:
        paired_labels = torch.zeros_like(paired_labels)
    return Candidates(
        rows=rows,
        labels=labels[rows],
        matrices=matrices,
        columns=dict(images=of_batch, labels=paired_labels, may_pair=may_pair),
        share=lambda paired: (paired.sum() / may_pair.sum().clamp(min=1)).float(),
        whole_sides=lambda restored: ~sides_at_border(restored, matrices, sizes, source_sizes),
    )


def _score_thresholds(records: Sequence[InstanceData], options: ConsistencyOptions) -> list[float]:
    """The smallest confidence of a candidate in each image."""
    if options.weak_target is None:
        return [options.score_threshold] * len(records)
    weak = [ImageRecord.read(record).is_weak for record in records]
    return [options.weak_target.threshold if own else 0.0 for own in weak]


def with_unlabelled(
    assigned: Candidates, confident: Candidates, records: Sequence[InstanceData]
) -> Candidates:
    """The candidates of labelled images and those of unlabelled ones, which come last."""
    count, more = len(assigned.rows), len(confident.rows)
    images = confident.columns['images']
    sources = torch.tensor(source_ids_of(records), device=images.device)[images]
    # Of no annotation: each by itself.
    places = -1 - torch.arange(more, device=images.device)
    columns = dict(
        instances=torch.stack([sources, places], dim=1),
        labels=confident.columns['labels'],
        images=images,
        may_pair=confident.columns['may_pair'],
        unlabelled=torch.ones_like(images, dtype=torch.bool),
    )
    own = dict(
        assigned.columns,
        labels=assigned.labels,
        unlabelled=torch.zeros(count, dtype=torch.bool, device=images.device),
    )
    return Candidates(
        rows=torch.cat([assigned.rows, confident.rows]),
        labels=torch.cat([assigned.labels, confident.labels]),
        matrices=torch.cat([assigned.matrices, confident.matrices]),
        columns={name: torch.cat([own[name], columns[name]]) for name in columns},
        share=lambda paired: assigned.share(paired[:count]),
        whole_sides=lambda restored: torch.cat(
            [assigned.whole_sides(restored[:count]), confident.whole_sides(restored[count:])]
        ),
    )


def rows_of_batch(per_image: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """(P,) int64: rows that count from 0 in each image, counted through the batch."""
    first, rows = 0, []
    for own, count in zip(per_image, counts):
        rows.append(own + first)
        first += count
    return torch.cat(rows)
