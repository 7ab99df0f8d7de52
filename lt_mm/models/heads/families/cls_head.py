"""The consistency term on MMPretrain's classification heads."""

from typing import Any

import torch
from mmpretrain.models.heads import ArcFaceClsHead, ClsHead, MultiLabelClsHead
from torch import Tensor, nn

from lt_mm.core.mixing import average_over_replicas, replicas_agree
from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.class_losses import reads_sigmoid
from lt_mm.models.heads.gathering import GatheredBatch, Part
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.models.heads.pairing import Pairs
from lt_mm.models.memory import image_checks
from lt_mm.structures.errors import PREPROCESSOR_HINT, UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import source_ids_of


@register_head_family(ClsHead, MultiLabelClsHead)
class ClsConsistency(ConsistencyMixin):
    """Mixin of a classification head: replicas of one image are positives."""

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Refuses heads without class logits, and heads whose loss does not use them."""
        name = type(head).__name__
        names = {each.__name__ for each in type(head).__mro__}
        if 'RegressionHead' in names or not hasattr(head, 'loss_module'):
            raise UnsupportedHeadError(
                f'{name} gives no class logits; expected a classification '
                "head such as dict(type='LinearClsHead', num_classes=..., in_channels=...)"
            )
        if type(head)._get_loss not in (ClsHead._get_loss, MultiLabelClsHead._get_loss):
            raise UnsupportedHeadError(
                f'{name} has a _get_loss of its own, so which logits the '
                'consistency term should compare is not known; expected a head that keeps '
                'that of ClsHead or MultiLabelClsHead'
            )
        if isinstance(head, ArcFaceClsHead):
            raise UnsupportedHeadError(
                f'{name} is trained on other logits than it predicts with, '
                'past _get_loss; expected a head that derives its loss from ClsHead, such as '
                "dict(type='LinearClsHead', ...)"
            )

    @classmethod
    def lt_wrap(cls, head: Any, options: ConsistencyOptions) -> nn.Module:
        """Wraps a head whose loss tells its activation, or with options that do."""
        cls.lt_check(head)
        if options.activation == 'auto':
            reads_sigmoid(head.loss_module)
        return cls.lt_add(head, options)

    def loss(self, feats: Any, data_samples: list[Any], **kwargs: Any) -> dict:
        losses = super().loss(feats, data_samples, **kwargs)
        if 'loss_lt_cls' not in losses:
            raise UnsupportedHeadError(
                f'{type(self).__name__} computes its loss without _get_loss, so the '
                'consistency term was not added; wrap a head that derives its loss '
                'from ClsHead or MultiLabelClsHead'
            )
        return losses

    def _get_loss(self, cls_score: Tensor, data_samples: list[Any], **kwargs: Any) -> dict:
        if not isinstance(cls_score, Tensor) or cls_score.dim() != 2:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts {type(cls_score).__name__}; the '
                'consistency term needs logits of shape (N, C)'
            )
        batch = self.lt_gather(self._lt_part(cls_score, data_samples))
        # The pairs are formed here: samples of one source image.
        group_ids = batch.columns['source_ids']
        pairs = self._lt_with_memory(Pairs(group_ids), batch)
        self._lt_settle_labels(data_samples, batch)
        losses = super()._get_loss(cls_score, data_samples, **kwargs)
        self.lt_add_term(
            'cls',
            lambda pairs: self.lt_class_term(batch.columns['logits'], pairs, self._lt_is_sigmoid()),
            pairs,
            batch,
            losses,
        )
        paired = pairs.paired[batch.own]
        self.lt_add_counts(paired, paired.float().mean(), losses)
        if self.lt_recorder is not None:
            self.lt_recorder(self._lt_pair_record(cls_score, group_ids[batch.own], paired))
        return losses

    def _lt_part(self, cls_score: Tensor, data_samples: list[Any]) -> Part:
        with self.lt_with_graph('cls'):
            logits = cls_score.view_as(cls_score)
        columns = dict(
            images=torch.arange(len(logits), device=logits.device),
            source_ids=torch.tensor(source_ids_of(data_samples), device=logits.device),
            logits=logits,
        )
        scores = _soft_labels(data_samples)
        if scores is not None:
            columns['scores'] = scores
        if self.lt_memory is not None:
            columns['checks'] = image_checks(data_samples, logits.device)
        return Part.of(columns, data_samples, avg_factor=len(logits))

    def _lt_with_memory(self, pairs: Pairs, batch: GatheredBatch) -> Pairs:
        if self.lt_memory is None:
            return pairs
        columns = batch.columns
        if 'scores' in columns:
            _refuse_mixed_memory(columns['scores'], isinstance(self, MultiLabelClsHead))
        source_ids = columns['source_ids']
        # An image is the only instance of its source.
        instances = torch.stack([source_ids, torch.zeros_like(source_ids)], dim=1)
        logits = columns['logits'].detach()
        remembered = self.lt_remember_classes(logits, pairs, self._lt_is_sigmoid())
        return self.lt_remember(pairs, dict(columns, instances=instances), dict(cls=remembered))

    @torch.no_grad()
    def _lt_pair_record(self, cls_score: Tensor, sources: Tensor, paired: Tensor) -> PairRecord:
        logits = cls_score.detach().float()
        scores, labels = (logits.sigmoid() if self._lt_is_sigmoid() else logits.softmax(dim=1)).max(
            dim=1
        )
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
        return self.lt_class_term(logits, Pairs(one_group), self._lt_is_sigmoid())

    def _lt_is_sigmoid(self) -> bool:
        if self.lt_options.activation != 'auto':
            return self.lt_options.activation == 'sigmoid'
        return reads_sigmoid(self.loss_module)

    def _lt_settle_labels(self, data_samples: list[Any], batch: GatheredBatch) -> None:
        """Makes sure that replicas of one source are trained on one and the same label.

        With ``mixed_labels='average'`` and labels that no grouped augment mixed, this writes
        their means into ``gt_score`` of the samples. Otherwise it only looks, at the cost of
        one synchronisation with the device, and of none where the labels cannot be mixed.
        """
        if 'scores' not in batch.columns:
            return
        mixed_alike = 'mix_lambda' in data_samples[0]
        scores, group_ids = batch.columns['scores'], batch.columns['source_ids']
        is_alone = len(scores) == len(data_samples)
        if is_alone and mixed_alike and all(sample.mix_lambda == 1 for sample in data_samples):
            return
        if mixed_alike:
            _check_mixed_alike(scores, group_ids)
        elif self.lt_options.mixed_labels == 'average':
            means = average_over_replicas(scores, group_ids)[batch.own]
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


def _refuse_mixed_memory(scores: Tensor, multi_label: bool) -> None:
    # A multi-label target sums to anything, but is yes or no; a blend lies between.
    mixed = (scores > 0) & (scores < 1) if multi_label else scores.amax(dim=1) < scores.sum(dim=1)
    if bool(mixed.any()):
        raise ValueError(
            'the labels of the batch are mixed (gt_score), and there is a memory: what is '
            'predicted for a mixed image is not comparable with what was predicted for the '
            'image in earlier epochs; remove model.train_cfg.augments (or '
            'data_preprocessor.batch_augments), or memory=dict(...) from the LossTransformHead'
        )
