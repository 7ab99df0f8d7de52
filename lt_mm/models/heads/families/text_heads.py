"""Heads whose classes are tokens of a text: Grounding DINO and GLIP.

A text may name other classes in each replica, and a token has no class. What all replicas of an
annotation say is how well its own phrase fits: the mean probability of the phrase's tokens, by
which the stock heads predict as well. The class term compares that one probability.
"""

from dataclasses import replace
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSVLFusionHead, GroundingDINOHead
from torch import Tensor

from lt_mm.core.consistency import logits_of
from lt_mm.models.heads.candidates import Annotated, Detections, rows_of_batch
from lt_mm.models.heads.families.anchor_heads import ATSSConsistency
from lt_mm.models.heads.families.dense_base import Assigned, DenseConsistency
from lt_mm.models.heads.families.detr_heads import DETRConsistency
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.structures.errors import UnsupportedHeadError


class PhraseConsistency(DenseConsistency):
    """Base of the mixins of heads with a score for each token.

    They keep the masks of the texts of the whole batch.
    """

    lt_splits_batches = False
    lt_takes_teacher = False

    def lt_is_sigmoid(self) -> bool:
        return True

    def lt_detections(self, assigned: list[Assigned], arguments: dict[str, Any]) -> Detections:
        if self.lt_options.pairing in ('iou', 'gt_score'):
            raise UnsupportedHeadError(
                f'{type(self).__name__} has scores for the tokens of a text, and no token is a '
                f"class, which pairing='{self.lt_options.pairing}' needs; use pairing='gt' in the "
                'LossTransformHead'
            )
        detections = super().lt_detections(assigned, arguments)
        return replace(detections, logits=_phrase_logits(detections))


@register_head_family(GroundingDINOHead)
class GroundingDINOConsistency(PhraseConsistency, DETRConsistency):
    """Mixin of Grounding DINO heads."""

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        tokens, weights, boxes, box_weights, rows, negatives = targets
        gt_instances = arguments['gt_instances']
        # Phrases take the place of labels.
        both = torch.cat([gt_instances.positive_maps.to(tokens), tokens[rows]])
        phrases = torch.unique(both, dim=0, return_inverse=True)[1]
        count = len(gt_instances)
        labels = tokens.new_zeros(len(tokens), dtype=torch.int64)
        labels[rows] = phrases[count:]
        named = type(gt_instances)(bboxes=gt_instances.bboxes, labels=phrases[:count])
        return super().lt_assigned(
            (labels, weights, boxes, box_weights, rows, negatives),
            dict(arguments, gt_instances=named),
        )


@register_head_family(ATSSVLFusionHead)
class GLIPConsistency(PhraseConsistency, ATSSConsistency):
    """Mixin of GLIP heads."""

    def lt_assigned(self, targets: tuple, arguments: dict[str, Any]) -> Assigned:
        sampled = targets[self.lt_place_of_samples]
        return Assigned(sampled.pos_inds, sampled.pos_assigned_gt_inds.long(), sampled.avg_factor)

    def lt_class_logits(self, arguments: dict[str, Any]) -> Tensor:
        return torch.cat(list(arguments['cls_scores']), dim=1)

    def lt_anchors(self, arguments: dict[str, Any]) -> Tensor:
        return super().lt_anchors(dict(arguments, cls_scores=arguments['bbox_preds']))

    def lt_joint_scores(self, scores: Tensor, factors: Tensor) -> Tensor:
        return (scores * factors).sqrt()


def _phrase_logits(detections: Detections) -> Tensor:
    """(N, 1) the logit of its annotation's phrase for each positive, 0 for the others."""
    tokens: Any = detections.logits
    rows = rows_of_batch(detections.positives, detections.counts)
    phrases = Annotated(detections.records, detections.annotations)['positive_maps'] > 0
    # Tokens beside the text have a logit of -inf.
    probabilities = torch.where(phrases, tokens[rows].float().sigmoid(), 0)
    fitting = probabilities.sum(dim=1) / phrases.sum(dim=1).clamp(min=1)
    empty = torch.zeros(len(tokens), 1, device=tokens.device)
    return empty.index_put((rows,), logits_of(fitting)[:, None])
