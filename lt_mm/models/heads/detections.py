"""The consistency term on detections: what RoI heads and dense heads have in common.

A mixin hands over what its head predicted for the batch as :class:`Detections`. Here the
candidates for pairs are chosen among them, brought back to their sources, gathered once,
paired (:mod:`lt_mm.models.heads.pairing`) and compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lt_mm.core.consistency import box_consistency, compared_axes, positives_each
from lt_mm.core.geometry import boxes_to_source, is_axis_aligned, is_invertible, sides_at_border
from lt_mm.core.memory_codes import BoxCode, Code
from lt_mm.core.pairing import distance_to_annotations, paired_share
from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.empty_terms import CUT, INEXACT, NO_PAIR
from lt_mm.models.heads.gathering import GatheredBatch, Part
from lt_mm.models.heads.pairing import Pairs, form_pairs
from lt_mm.models.memory import instance_checks
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import image_matrices, image_sizes, source_ids_of


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
        priors: (N, 4) boxes that each prediction is about, pixels of the replicas; for heads
            without ``decode``.
        given: For each image (p,) bool, which positives were made from the annotation itself
            (``add_gt_as_proposals`` of RoI samplers). They see the object in exactly the same
            frame in all replicas, as no prediction of the detector does, so they are the
            nearest of an annotation only where it has no other positive.
    """

    logits: Tensor | None
    decode: Callable[[Tensor, Tensor], Tensor] | None
    counts: list[int]
    records: list[InstanceData]
    positives: list[Tensor]
    annotations: list[Tensor]
    sigmoid: bool
    avg_factor: float
    priors: Tensor | None = None
    given: list[Tensor] | None = None


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


class DetectionConsistency(ConsistencyMixin):
    """Base of the mixins of heads that predict classes and boxes of instances."""

    def lt_add_terms(self, detections: Detections, losses: dict[str, Any]) -> None:
        """Pairs and compares the predictions of a batch; adds the terms to the losses."""
        candidates = self._lt_candidates(detections)
        batch = self.lt_gather(
            Part.of(candidates.columns, detections.records, detections.avg_factor)
        )
        # The pairs are formed here.
        options, columns = self.lt_options, batch.columns
        pairs = form_pairs(
            batch, options.pairing, options.iou_threshold, alone=options.memory is not None
        )
        if options.memory is not None:
            remembered = self._lt_remembered(columns, pairs, detections.sigmoid)
            pairs = self.lt_remember(pairs, columns, remembered)
        if 'logits' in columns:
            self.lt_add_term(
                'cls',
                lambda pairs: self.lt_class_term(
                    columns['logits'],
                    pairs,
                    detections.sigmoid,
                    batch.avg_factor,
                    stands_for=_positives_each(columns, pairs),
                ),
                pairs,
                batch,
                losses,
            )
            self.lt_watch_term('cls', {NO_PAIR: pairs.paired})
        if 'restored' in columns:
            self._lt_add_box_term(batch, pairs, losses)
        group_ids = pairs.group_ids
        paired = pairs.paired[batch.own]
        self.lt_add_counts(paired, candidates.share(paired), losses)
        if self.lt_recorder is not None and candidates.boxes is not None:
            self.lt_recorder(
                self._lt_pair_record(detections, candidates, group_ids[batch.own], paired)
            )

    def _lt_add_box_term(self, batch: GatheredBatch, pairs: Pairs, losses: dict[str, Any]) -> None:
        columns = batch.columns
        # Boxes of rotated or sheared replicas are not restored exactly, and left out.
        exact = pairs.only(columns['exact'])
        self.lt_add_term(
            'bbox',
            lambda pairs: self.lt_box_term(columns, pairs, batch.avg_factor),
            exact,
            batch,
            losses,
        )
        compared = self.lt_compared_sides(exact, columns['whole_sides']).any(dim=1)
        self.lt_add_count('num_box_pairs', compared[batch.own], losses)
        remaining = {NO_PAIR: pairs.paired, INEXACT: exact.paired, CUT: compared}
        self.lt_watch_term('bbox', remaining)

    def _lt_remembered(
        self, columns: dict[str, Tensor], pairs: Pairs, sigmoid: bool
    ) -> dict[str, tuple[Code, Tensor]]:
        """What the memory keeps of the Q candidates."""
        remembered: dict[str, tuple[Code, Tensor]] = {}
        if 'logits' in columns:
            remembered['cls'] = self.lt_remember_classes(columns['logits'], pairs, sigmoid)
        if 'restored' in columns:
            boxes = columns['restored'].detach()
            boxes = boxes if pairs.cells is None else pairs.cells.mean(boxes)
            known = columns['whole_sides'] & columns['exact'][:, None]
            remembered['bbox'] = BoxCode(), torch.where(known, boxes, torch.nan)
        return remembered

    def lt_compared_sides(self, pairs: Pairs, whole_sides: Tensor) -> Tensor:
        """Which parts of Q boxes :meth:`lt_box_term` compares, (Q, D) bool: axes, or sides."""
        return compared_axes(pairs.compared_ids, whole_sides, pairs.targets.get('bbox'))

    def lt_box_columns(self, detections: Detections, candidates: Candidates) -> dict[str, Tensor]:
        """What the box term compares, beside 'restored': columns (P, ...) for the gathering."""
        return {}

    def lt_box_term(self, columns: dict[str, Tensor], pairs: Pairs, avg_factor: float) -> Tensor:
        """The box term of Q gathered candidates: of their boxes, restored to the source."""
        restored = columns['restored']
        return box_consistency(
            restored if pairs.cells is None else pairs.cells.mean(restored),
            pairs.compared_ids,
            detach_mean=self.lt_options.detach_mean,
            avg_factor=avg_factor,
            whole_sides=columns['whole_sides'],
            target=pairs.targets.get('bbox'),
        )

    def _lt_candidates(self, detections: Detections) -> Candidates:
        self._lt_check_pairing(detections)
        if self.lt_options.pairing == 'iou':
            candidates = self._lt_confident(detections)
        else:
            candidates = self._lt_assigned_to_annotations(detections)
        columns = candidates.columns
        columns['exact'] = is_axis_aligned(candidates.matrices)
        if detections.decode is not None:
            with self.lt_with_graph('bbox'):
                with torch.autocast(candidates.rows.device.type, enabled=False):
                    boxes = detections.decode(candidates.rows, candidates.labels).float()
                candidates.boxes = boxes
                columns['restored'] = boxes_to_source(boxes, candidates.matrices)
                columns['whole_sides'] = candidates.whole_sides(columns['restored'])
                columns.update(self.lt_box_columns(detections, candidates))
        if detections.logits is not None:
            with self.lt_with_graph('cls'):
                columns['logits'] = detections.logits[candidates.rows]
        if self.lt_options.pairing == 'gt':
            annotated = Annotated(detections.records, detections.annotations)
            places = candidates.boxes
            if places is None:
                assert detections.priors is not None
                places = detections.priors[candidates.rows]
            given = None if detections.given is None else torch.cat(detections.given)
            columns['distances'] = distance_to_annotations(places, annotated['bboxes'], given)
        return candidates

    def _lt_check_pairing(self, detections: Detections) -> None:
        if self.lt_options.pairing != 'iou':
            return
        needed = dict(classes=detections.logits, boxes=detections.decode)
        missing = [name for name, found in needed.items() if found is None]
        if missing:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts no {" and no ".join(missing)}, which '
                "pairing='iou' compares; use pairing='gt' in the LossTransformHead"
            )

    def _lt_assigned_to_annotations(self, detections: Detections) -> Candidates:
        """All positives."""
        annotated = Annotated(detections.records, detections.annotations)
        columns = dict(
            images=annotated.images,
            instances=annotated['source_ids'],
            may_pair=annotated.may_pair(self.lt_options.min_visibility),
        )
        if self.lt_memory is not None:
            columns['checks'] = annotated.checks
        return Candidates(
            rows=rows_of_batch(detections.positives, detections.counts),
            labels=annotated['labels'],
            matrices=annotated['source_matrices'],
            columns=columns,
            share=annotated.share_of_instances,
            whole_sides=lambda restored: ~annotated['cut_sides'],
        )

    def _lt_confident(self, detections: Detections) -> Candidates:
        """The most confident predictions of each image."""
        scores, labels = self._lt_confidence(detections)
        counts = detections.counts
        kept = min(self.lt_options.max_candidates, max(counts))
        padded = pad_sequence(scores.split(counts), batch_first=True, padding_value=-1.0)
        best, places = padded.topk(kept, dim=1)
        # A slot past the end of a short image is not confident; any row serves there.
        rows = rows_of_batch(list(places), counts).clamp(max=len(scores) - 1)
        images = torch.arange(len(counts), device=rows.device).repeat_interleave(kept)
        matrices = image_matrices(detections.records, scores.device)[images]
        confident = (best >= self.lt_options.score_threshold).flatten()
        may_pair = confident & is_invertible(matrices)
        sizes, source_sizes = (
            image_sizes(detections.records, name, scores.device)[images]
            for name in ('recorded_shape', 'source_shape')
        )
        return Candidates(
            rows=rows,
            labels=labels[rows],
            matrices=matrices,
            columns=dict(images=images, labels=labels[rows], may_pair=may_pair),
            share=lambda paired: (paired.sum() / may_pair.sum().clamp(min=1)).float(),
            whole_sides=lambda restored: ~sides_at_border(restored, matrices, sizes, source_sizes),
        )

    @torch.no_grad()
    def _lt_confidence(self, detections: Detections) -> tuple[Tensor, Tensor]:
        """Score and class (N,) of every prediction's best class, background apart."""
        logits: Any = detections.logits
        logits = logits.float()
        scores = logits.sigmoid() if detections.sigmoid else logits.softmax(dim=1)
        return scores[:, : self.num_classes].max(dim=1)

    @torch.no_grad()
    def _lt_pair_record(
        self, detections: Detections, candidates: Candidates, group_ids: Tensor, paired: Tensor
    ) -> PairRecord:
        """With 'iou' only of those confident enough to pair."""
        columns, rows = candidates.columns, candidates.rows
        scores, labels = torch.ones_like(rows, dtype=torch.float32), candidates.labels
        if detections.logits is not None:
            scores, labels = (each[rows] for each in self._lt_confidence(detections))
        shown = torch.ones_like(paired)
        if self.lt_options.pairing == 'iou':
            sources = torch.tensor(source_ids_of(detections.records), device=rows.device)
            sources = sources[columns['images']]
            shown = paired | (scores >= self.lt_options.score_threshold)
        else:
            sources = columns['instances'][:, 0]
        record = PairRecord(
            kind='bbox',
            images=columns['images'],
            source_ids=sources,
            group_ids=group_ids,
            paired=paired,
            labels=labels,
            scores=scores,
            boxes=candidates.boxes,
            restored=columns['restored'],
        )
        return record.rows(shown.nonzero()[:, 0])


def _positives_each(columns: dict[str, Tensor], pairs: Pairs) -> Tensor | float:
    """For how many positives of the stock loss each compared prediction stands."""
    if 'instances' not in columns:  # 'iou' knows no positives
        return 1.0
    return positives_each(columns['instances'], columns['images'], pairs.compared)


def rows_of_batch(per_image: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """(P,) int64: rows that count from 0 in each image, counted through the batch."""
    first, rows = 0, []
    for own, count in zip(per_image, counts):
        rows.append(own + first)
        first += count
    return torch.cat(rows)
