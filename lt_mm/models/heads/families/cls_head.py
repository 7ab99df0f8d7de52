"""The consistency term on MMPretrain's classification heads."""

from typing import Any

import torch
from mmpretrain.models.heads import ArcFaceClsHead, ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from lt_mm.core.mixing import average_over_replicas, replicas_agree
from lt_mm.core.pairing import is_paired
from lt_mm.models.heads.loss_transform_head import (
    ConsistencyHead,
    ConsistencyOptions,
    add_consistency,
    register_wrap,
)
from lt_mm.models.heads.ranks import OwnRank
from lt_mm.structures.errors import PREPROCESSOR_HINT, UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import source_ids_of

# Losses of MMPretrain that read the logits as independent Bernoullis.
_SIGMOID_LOSSES = ('FocalLoss', 'AsymmetricLoss')


class ClsConsistency(ConsistencyHead):
    """Front of a classification head: replicas of one image are positives."""

    def loss(self, feats: Any, data_samples: list[Any], **kwargs: Any) -> dict:
        losses = super().loss(feats, data_samples, **kwargs)
        if 'loss_lt_cls' not in losses:
            raise UnsupportedHeadError(
                f'{type(self).__name__} computes its loss without _get_loss, so the '
                'consistency term was not added; wrap a head that derives its loss '
                'from ClsHead or MultiLabelClsHead'
            )
        return losses

    def _get_loss(
        self, cls_score: Tensor, data_samples: list[Any], **kwargs: Any
    ) -> dict[str, Tensor]:
        if not isinstance(cls_score, Tensor) or cls_score.dim() != 2:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts {type(cls_score).__name__}; the '
                'consistency term needs logits of shape (N, C)'
            )
        source_ids = source_ids_of(data_samples)
        self._watch_groups(source_ids, cls_score.device)
        ranks = self._exchange(len(source_ids), cls_score.device)
        # The pairs are formed here: samples with the same source image.
        group_ids = ranks.join(torch.tensor(source_ids, device=cls_score.device))
        self._settle_labels(data_samples, group_ids, ranks)
        losses = super()._get_loss(cls_score, data_samples, **kwargs)
        self._term(
            'cls',
            lambda: self._class_term(ranks.join(cls_score), group_ids, self._is_sigmoid()),
            losses,
        )
        paired = ranks.own(is_paired(group_ids))
        losses['lt_num_pairs'] = paired.sum().float()
        losses['lt_paired_share'] = paired.float().mean()
        if self.lt_recorder is not None:
            self.lt_recorder(self._pair_record(cls_score, source_ids, paired))
        return losses

    @torch.no_grad()
    def _pair_record(self, cls_score: Tensor, source_ids: list[int], paired: Tensor) -> PairRecord:
        logits = cls_score.detach().float()
        scores, labels = (logits.sigmoid() if self._is_sigmoid() else logits.softmax(dim=1)).max(
            dim=1
        )
        sources = torch.tensor(source_ids, device=labels.device)
        return PairRecord(
            kind='cls',
            images=torch.arange(len(sources)),
            source_ids=sources,
            group_ids=sources,
            paired=paired,
            labels=labels,
            scores=scores,
            logits=logits,
        )

    def lt_divergence(self, logits: Tensor) -> Tensor:
        """The class term of predictions (n, C) that are all replicas of one source."""
        one_group = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return self._class_term(logits, one_group, self._is_sigmoid())

    def _is_sigmoid(self) -> bool:
        loss = self.loss_module
        return (
            isinstance(self, MultiLabelClsHead)
            or bool(getattr(loss, 'use_sigmoid', False))
            or type(loss).__name__ in _SIGMOID_LOSSES
        )

    def _settle_labels(self, data_samples: list[Any], group_ids: Tensor, ranks: OwnRank) -> None:
        """Makes sure that replicas of one source are trained on one and the same label.

        With ``mixed_labels='average'`` and labels that no grouped augment mixed, this
        writes their means into ``gt_score`` of the samples. Otherwise it only looks, at
        the cost of one synchronisation with the device, and of none where the labels
        cannot be mixed.
        """
        mixed_alike = 'mix_lambda' in data_samples[0]
        # What other ranks' samples hold is not known here, so no rank may leave first.
        if (
            ranks.is_alone
            and mixed_alike
            and all(sample.mix_lambda == 1 for sample in data_samples)
        ):
            return
        scores = _soft_labels(data_samples)
        if scores is None:
            return
        scores = ranks.join(scores)
        if mixed_alike:
            _check_mixed_alike(scores, group_ids)
        elif self.lt_options.mixed_labels == 'average':
            means = ranks.own(average_over_replicas(scores, group_ids))
            for sample, score in zip(data_samples, means):
                sample.set_gt_score(score)
        else:
            # A multi-label target sums to anything, so there only a difference tells.
            _refuse_mixed(scores, group_ids, one_hot=not isinstance(self, MultiLabelClsHead))


def _soft_labels(data_samples: list[Any]) -> Tensor | None:
    """(N, num_classes) ``gt_score`` of a batch; None where no label can be mixed."""
    if 'gt_score' not in data_samples[0]:
        return None
    scores = torch.stack([sample.gt_score for sample in data_samples])
    return scores if scores.is_floating_point() else None


def _check_mixed_alike(scores: Tensor, group_ids: Tensor) -> None:
    if not bool(replicas_agree(scores, group_ids)):
        raise ValueError(
            'replicas of one source have different labels (gt_score) after a grouped '
            'batch augment; expected equal ones. Either they differed before it, so '
            'check what the data set gives for one image, or the augment does not mix '
            'all replicas of a source alike: use lt_mm.GroupedMixup or '
            'lt_mm.GroupedCutMix in model.train_cfg.augments. Replicas on different '
            "ranks cannot be mixed alike: use placement='rank' in the sampler"
        )


def _refuse_mixed(scores: Tensor, group_ids: Tensor, one_hot: bool) -> None:
    mixed = ~replicas_agree(scores, group_ids)
    if one_hot:
        mixed = mixed | (scores.amax(dim=1) < scores.sum(dim=1)).any()
    if bool(mixed):
        raise ValueError(
            'the labels of the batch are mixed (gt_score): stock batch_augments such as '
            'Mixup or CutMix mix each replica with another image, so replicas of one '
            'source no longer show the same thing and their predictions must not be '
            f'pulled together. Mix replicas alike: {PREPROCESSOR_HINT} with '
            "dict(type='lt_mm.GroupedMixup', alpha=...) or lt_mm.GroupedCutMix in "
            'model.train_cfg.augments; or train all replicas of a source on the mean of '
            "their labels: head=dict(type='lt_mm.LossTransformHead', "
            "mixed_labels='average', ...); or remove model.train_cfg.augments (or "
            'data_preprocessor.batch_augments)'
        )


def _applies(head: nn.Module) -> bool:
    return isinstance(head, (ClsHead, MultiLabelClsHead))


def _wrap(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    names = {cls.__name__ for cls in type(head).__mro__}
    if 'RegressionHead' in names or not hasattr(head, 'loss_module'):
        raise UnsupportedHeadError(
            f'{type(head).__name__} gives no class logits; expected a classification '
            "head such as dict(type='LinearClsHead', num_classes=..., in_channels=...)"
        )
    if type(head)._get_loss not in (ClsHead._get_loss, MultiLabelClsHead._get_loss):
        raise UnsupportedHeadError(
            f'{type(head).__name__} has a _get_loss of its own, so which logits the '
            'consistency term should compare is not known; expected a head that keeps '
            'that of ClsHead or MultiLabelClsHead'
        )
    if isinstance(head, ArcFaceClsHead):
        raise UnsupportedHeadError(
            f'{type(head).__name__} is trained on other logits than it predicts with, '
            'past _get_loss; expected a head that derives its loss from ClsHead, such as '
            "dict(type='LinearClsHead', ...)"
        )
    return add_consistency(ClsConsistency, head, options)


register_wrap(_applies, _wrap)
