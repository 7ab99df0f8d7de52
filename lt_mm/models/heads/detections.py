"""The consistency term on detections: what RoI heads and dense heads have in common.

A mixin hands over what its head predicted for the batch as :class:`Detections`. Here the
candidates for pairs are chosen among them, brought back to their sources, gathered once,
paired (:mod:`lt_mm.models.heads.pairing`) and compared.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lt_mm.core.consistency import box_consistency, compared_axes, positives_each
from lt_mm.core.geometry import boxes_to_source, is_axis_aligned
from lt_mm.core.memory_codes import BoxCode, Code, class_probabilities
from lt_mm.core.pairing import distance_to_annotations
from lt_mm.core.weak_targets import weak_targets
from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.candidates import (
    Annotated,
    Candidates,
    Detections,
    assigned_to_annotations,
    most_confident,
    with_unlabelled,
)
from lt_mm.models.heads.empty_terms import CUT, INEXACT, NO_MATCH, NO_PAIR, UNSURE
from lt_mm.models.heads.gathering import GatheredBatch, Part
from lt_mm.models.heads.pairing import Pairs, form_pairs
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import ImageRecord, source_ids_of
from lt_mm.structures.supervision import Supervision, check_weak_copies


class DetectionConsistency(ConsistencyMixin):
    """Base of the mixins of heads that predict classes and boxes of instances.

    Attributes:
        lt_objectness_loss: Name of the stock loss of what :class:`Detections` calls objectness;
            of heads that have one.
    """

    lt_objectness_loss: str

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
        if options.weak_target is not None:
            pairs = self._lt_with_weak_targets(columns, pairs, detections.sigmoid)
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
            self.lt_watch_term('cls', self._lt_compared_classes(columns, pairs))
        if 'objectness' in columns:
            self._lt_add_objectness_term(batch, pairs, losses)
        if 'restored' in columns:
            self._lt_add_box_term(batch, pairs, losses)
        group_ids = pairs.group_ids
        paired = pairs.paired[batch.own]
        self.lt_add_counts(paired, candidates.share(paired), losses)
        if 'unlabelled' in columns:
            unlabelled = columns['unlabelled'][batch.own]
            self.lt_add_count('num_unlabelled_paired', paired & unlabelled, losses)
            confident = self._lt_confident_unlabelled(columns)[batch.own]
            self.lt_add_count('num_unlabelled_confident', confident, losses)
        if self.lt_recorder is not None and candidates.boxes is not None:
            self.lt_recorder(
                self._lt_pair_record(detections, candidates, group_ids[batch.own], paired)
            )

    def _lt_add_objectness_term(
        self, batch: GatheredBatch, pairs: Pairs, losses: dict[str, Any]
    ) -> None:
        columns = batch.columns
        self.lt_add_term(
            'obj',
            lambda pairs: self.lt_objectness_term(
                columns['objectness'],
                pairs,
                getattr(self, self.lt_objectness_loss),
                batch.avg_factor,
                stands_for=_positives_each(columns, pairs),
            ),
            pairs,
            batch,
            losses,
        )
        self.lt_watch_term('obj', self._lt_compared_classes(columns, pairs))

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
        if 'objectness' in columns:
            remembered['obj'] = self.lt_remember_objectness(columns['objectness'], pairs)
        if 'restored' in columns:
            boxes = columns['restored'].detach()
            boxes = boxes if pairs.cells is None else pairs.cells.mean(boxes)
            known = columns['whole_sides'] & columns['exact'][:, None]
            remembered['bbox'] = BoxCode(), torch.where(known, boxes, torch.nan)
        return remembered

    @torch.no_grad()
    def _lt_with_weak_targets(
        self, columns: dict[str, Tensor], pairs: Pairs, sigmoid: bool
    ) -> Pairs:
        """The pairs, with the predictions for weak copies as what the others are compared with."""
        targets: dict[str, Tensor] = {}
        options = self.lt_options.weak_target
        group_ids, is_weak = pairs.group_ids, columns['weak']
        if 'logits' in columns:
            logits = columns['logits']
            targets['cls'] = self.lt_weak_class_targets(logits, group_ids, is_weak, sigmoid)
        others: dict[str, Tensor] = {}
        if 'objectness' in columns:
            others['obj'] = class_probabilities(columns['objectness'], True, options.temperature)
        if 'restored' in columns:
            known = columns['whole_sides'] & columns['exact'][:, None]
            others['bbox'] = torch.where(known, columns['restored'].detach(), torch.nan)
        for kind, values in others.items():
            targets[kind] = weak_targets(values, group_ids, is_weak)
            if 'cls' in targets:  # of confident ones alone
                sure = ~targets['cls'].isnan().any(dim=1, keepdim=True)
                targets[kind] = torch.where(sure, targets[kind], torch.nan)
        return replace(pairs, targets=targets)

    def _lt_compared_classes(self, columns: dict[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
        """What may take all from the class term; see :meth:`EmptyTerms.watch`."""
        if 'unlabelled' in columns or self.lt_options.pairing == 'iou':
            return {UNSURE: self._lt_confident_unlabelled(columns), NO_MATCH: pairs.paired}
        return {NO_PAIR: pairs.paired}

    def _lt_confident_unlabelled(self, columns: dict[str, Tensor]) -> Tensor:
        """(Q,) bool, which predictions found without annotations passed their threshold."""
        confident = columns['may_pair']
        for name in ('unlabelled', 'weak'):  # of others there is none, or a threshold of 0
            confident = confident & columns.get(name, torch.ones_like(confident))
        return confident

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
        unlabelled = self._lt_unlabelled(detections)
        self._lt_check_pairing(detections, unlabelled)
        if self.lt_options.pairing == 'iou':
            candidates = self._lt_confident(detections, range(len(detections.counts)))
        else:
            candidates = assigned_to_annotations(detections, self.lt_options)
            if unlabelled:
                confident = self._lt_confident(detections, unlabelled)
                candidates = with_unlabelled(candidates, confident, detections.records)
        columns = candidates.columns
        if self.lt_options.weak_target is not None:
            check_weak_copies(detections.records)
            self.lt_check_teacher()
            weak = [ImageRecord.read(record).is_weak for record in detections.records]
            columns['weak'] = torch.tensor(weak, device=candidates.rows.device)[columns['images']]
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
        if detections.objectness is not None:
            with self.lt_with_graph('obj'):
                columns['objectness'] = detections.objectness[candidates.rows, None]
        if self.lt_options.pairing in ('gt', 'gt_score'):
            columns['distances'] = self._lt_distances(detections, candidates)
        return candidates

    def _lt_unlabelled(self, detections: Detections) -> list[int]:
        """The unlabelled images of the batch.

        Raises:
            UnsupportedHeadError: If there are some, and a memory or replicas on other ranks.
        """
        supervision = Supervision.of(detections.records, 'all')
        unlabelled = supervision.unlabelled_images
        if unlabelled and self.lt_memory is not None:
            raise UnsupportedHeadError(
                'there are unlabelled images in the batch, and a memory, which keeps predictions '
                'of annotations; expected memory=None in the LossTransformHead, or a data set of '
                'labelled images alone'
            )
        if unlabelled and self.lt_options.across_ranks:
            raise UnsupportedHeadError(
                'there are unlabelled images in the batch, and across_ranks=True; expected '
                "across_ranks=False in the LossTransformHead, and placement='rank' in the sampler"
            )
        return unlabelled

    def _lt_check_pairing(self, detections: Detections, unlabelled: list[int]) -> None:
        needed: dict[str, Any] = {}
        if self.lt_options.pairing in ('iou', 'gt_score') or unlabelled:
            needed['classes'] = detections.logits
        if self.lt_options.pairing == 'iou' or unlabelled:
            needed['boxes'] = detections.decode
        missing = [name for name, found in needed.items() if found is None]
        if missing:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts no {" and no ".join(missing)}, which '
                "pairing='iou' or 'gt_score', and unlabelled images, need; use pairing='gt' in the "
                'LossTransformHead, and labelled images alone'
            )

    def _lt_confident(self, detections: Detections, images: Sequence[int]) -> Candidates:
        scores, labels = self._lt_confidence(detections)
        return most_confident(detections, self.lt_options, images, scores, labels)

    @torch.no_grad()
    def _lt_confidence(
        self, detections: Detections, rows: Any = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Score and class (P,) of the best class, background apart, of rows (P,); of all (N,)."""
        logits: Any = detections.logits
        logits = logits[rows].float()
        scores = logits.sigmoid() if detections.sigmoid else logits.softmax(dim=1)
        scores, labels = scores[:, : self.num_classes].max(dim=1)
        if detections.score_factors is not None:
            scores = self.lt_joint_scores(scores, detections.score_factors[rows].float())
        return scores, labels

    def lt_joint_scores(self, scores: Tensor, factors: Tensor) -> Tensor:
        """The scores of detections from those of their classes, as the stock head predicts them.

        Args:
            scores: (..., C) or (N,), of classes.
            factors: (..., 1) or (N,), see :class:`Detections`.
        """
        return scores * factors

    def _lt_distances(self, detections: Detections, candidates: Candidates) -> Tensor:
        """(P,), of which the least is taken of an annotation in each replica."""
        if self.lt_options.pairing == 'gt':
            return _distances(detections, candidates)
        scores, _ = self._lt_confidence(detections, candidates.rows)
        # A score that is not finite is seen in the term, as with 'gt', and pairs like any other.
        distances = 1 - scores.nan_to_num(nan=0.0)
        if detections.given is not None:  # last, as with 'gt'
            given = torch.cat(detections.given)
            distances[: len(given)] += given
        return distances

    @torch.no_grad()
    def _lt_pair_record(
        self, detections: Detections, candidates: Candidates, group_ids: Tensor, paired: Tensor
    ) -> PairRecord:
        """With 'iou' only of those confident enough to pair."""
        columns, rows = candidates.columns, candidates.rows
        scores, labels = torch.ones_like(rows, dtype=torch.float32), candidates.labels
        if detections.logits is not None:
            scores, labels = self._lt_confidence(detections, rows)
        shown = torch.ones_like(paired)
        if self.lt_options.pairing == 'iou':
            sources = torch.tensor(source_ids_of(detections.records), device=rows.device)
            sources = sources[columns['images']]
            shown = paired | (scores >= self.lt_options.score_threshold)
        else:
            sources = columns['instances'][:, 0]
            if 'unlabelled' in columns:
                shown = paired | ~columns['unlabelled'] | columns['may_pair']
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


def _distances(detections: Detections, candidates: Candidates) -> Tensor:
    """(P,) how far each candidate is from its annotation."""
    distances = detections.distances
    if distances is None:
        annotated = Annotated(detections.records, detections.annotations)
        places = candidates.boxes
        if places is None:
            assert detections.priors is not None
            places = detections.priors[candidates.rows]
        given = None if detections.given is None else torch.cat(detections.given)
        boxes = annotated['bboxes']
        distances = distance_to_annotations(places[: len(boxes)], boxes, given)
    # Those for unlabelled images, which come last, have no annotation.
    return torch.cat([distances, distances.new_zeros(len(candidates.rows) - len(distances))])


def _positives_each(columns: dict[str, Tensor], pairs: Pairs) -> Tensor | float:
    """For how many positives of the stock loss each compared prediction stands."""
    if 'instances' not in columns:  # 'iou' knows no positives
        return 1.0
    return positives_each(columns['instances'], columns['images'], pairs.compared)
