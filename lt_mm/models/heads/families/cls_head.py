"""The consistency term on MMPretrain's classification heads."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmpretrain.models.heads import (
    ArcFaceClsHead,
    ClsHead,
    ConformerHead,
    MultiLabelClsHead,
    MultiTaskHead,
)
from mmpretrain.models.heads.multi_task_head import loss_convertor
from torch import Tensor, nn

from lt_mm.core.mixing import average_over_replicas, replicas_agree
from lt_mm.core.pairing import is_paired
from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.class_losses import reads_sigmoid
from lt_mm.models.heads.empty_terms import NO_PAIR, UNSURE
from lt_mm.models.heads.gathering import GatheredBatch, Part
from lt_mm.models.heads.head_families import family_of, register_head_family
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.models.heads.pairing import Pairs
from lt_mm.models.memory import image_checks
from lt_mm.structures.errors import PREPROCESSOR_HINT, UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import ImageRecord, source_ids_of
from lt_mm.structures.supervision import Supervision, check_weak_copies


@register_head_family(ClsHead, MultiLabelClsHead)
class ClsConsistency(ConsistencyMixin):
    """Mixin of a classification head: replicas of one image are positives.

    Attributes:
        lt_stock_losses: The methods ``_get_loss`` that the mixin can read.
    """

    lt_stock_losses: tuple[Callable, ...] = (ClsHead._get_loss, MultiLabelClsHead._get_loss)
    lt_takes_teacher = True
    lt_is_task = False

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
        if type(head)._get_loss not in cls.lt_stock_losses:
            raise UnsupportedHeadError(
                f'{name} has a _get_loss of its own, so which logits the '
                'consistency term should compare is not known; expected a head that keeps '
                'that of ClsHead, MultiLabelClsHead or ConformerHead'
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

    def forward(self, feats: Any) -> Any:
        return self.lt_forward(super().forward, feats)

    def loss(self, feats: Any, data_samples: list[Any], **kwargs: Any) -> dict:
        around = getattr(vars(self).get('loss'), '__qualname__', '')
        if around.startswith(loss_convertor.__name__) and not self.lt_is_task:
            raise UnsupportedHeadError(
                f'{type(self).__name__} is the head of one task in a MultiTaskHead, whose samples '
                'do not say which source they show; wrap the whole head, which gives each task '
                "its term: head=dict(type='lt_mm.LossTransformHead', head=dict(type="
                "'MultiTaskHead', task_heads=<stock heads>, ...), ...)"
            )
        losses = super().loss(feats, data_samples, **kwargs)
        if 'loss_lt_cls' not in losses:
            raise UnsupportedHeadError(
                f'{type(self).__name__} computes its loss without _get_loss, so the '
                'consistency term was not added; wrap a head that derives its loss '
                'from ClsHead or MultiLabelClsHead'
            )
        return losses

    def lt_predicted_logits(self, cls_score: Any) -> Tensor:
        """The logits (N, C) of which the head makes its predictions, from what it computes.

        Raises:
            UnsupportedHeadError: If there are none.
        """
        if not isinstance(cls_score, Tensor) or cls_score.dim() != 2:
            raise UnsupportedHeadError(
                f'{type(self).__name__} predicts {type(cls_score).__name__}; the '
                'consistency term needs logits of shape (N, C)'
            )
        return cls_score

    def lt_scores_of(self, cls_score: Any, images: list[int]) -> Any:
        """What the head computes for some images."""
        return cls_score[images]

    def _get_loss(self, cls_score: Any, data_samples: list[Any], **kwargs: Any) -> dict:
        logits = self.lt_predicted_logits(cls_score)
        batch = self.lt_gather(self._lt_part(logits, data_samples))
        # The pairs are formed here: samples of one source image.
        group_ids = batch.columns['source_ids']
        pairs = self._lt_with_memory(Pairs(group_ids), batch)
        if self.lt_options.weak_target is not None:
            pairs = self._lt_with_weak_targets(pairs, batch, data_samples)
        supervision = Supervision.of(data_samples, self.lt_options.supervise)
        self._lt_settle_labels(data_samples, batch, supervision)
        if supervision.is_stock:
            losses = super()._get_loss(cls_score, data_samples, **kwargs)
        else:
            images = supervision.supervised_images
            supervised = [data_samples[image] for image in images]
            scores = self.lt_scores_of(cls_score, images)
            losses = super()._get_loss(scores, supervised, **kwargs)
        self.lt_add_term(
            'cls',
            lambda pairs: self.lt_class_term(batch.columns['logits'], pairs, self._lt_is_sigmoid()),
            pairs,
            batch,
            losses,
        )
        paired = pairs.paired[batch.own]
        self.lt_add_counts(paired, paired.float().mean(), losses)
        unlabelled = supervision.unlabelled_images
        if unlabelled:
            self.lt_add_count('num_unlabelled_paired', paired[unlabelled], losses)
        if self.lt_options.weak_target is not None:
            self.lt_watch_term('cls', {NO_PAIR: is_paired(group_ids), UNSURE: pairs.paired})
        if self.lt_recorder is not None:
            self.lt_recorder(self._lt_pair_record(logits, group_ids[batch.own], paired))
        return losses

    def _lt_part(self, predicted: Tensor, data_samples: list[Any]) -> Part:
        with self.lt_with_graph('cls'):
            logits = predicted.view_as(predicted)
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

    def _lt_with_weak_targets(
        self, pairs: Pairs, batch: GatheredBatch, data_samples: list[Any]
    ) -> Pairs:
        check_weak_copies(data_samples)
        self.lt_check_teacher()
        logits, group_ids = batch.columns['logits'].detach(), batch.columns['source_ids']
        weak = [ImageRecord.read(sample).is_weak for sample in data_samples]
        is_weak = torch.tensor(weak, device=logits.device)
        targets = self.lt_weak_class_targets(logits, group_ids, is_weak, self._lt_is_sigmoid())
        return replace(pairs, targets=dict(cls=targets))

    @torch.no_grad()
    def _lt_pair_record(self, predicted: Tensor, sources: Tensor, paired: Tensor) -> PairRecord:
        logits = predicted.detach().float()
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

    def _lt_settle_labels(
        self, data_samples: list[Any], batch: GatheredBatch, supervision: Supervision
    ) -> None:
        """Makes sure that replicas of one source are trained on one and the same label.

        With ``mixed_labels='average'`` and labels that no grouped augment mixed, this writes
        their means into ``gt_score`` of the samples. Otherwise it only looks, at the cost of
        one synchronisation with the device, and of none where the labels cannot be mixed.
        """
        if 'scores' not in batch.columns:
            return
        mixed_alike = 'mix_lambda' in data_samples[0]
        scores, group_ids = batch.columns['scores'], batch.columns['source_ids']
        if supervision.unlabelled_images:
            _refuse_mixed_with_unlabelled(scores, supervision, isinstance(self, MultiLabelClsHead))
            return
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


@register_head_family(ConformerHead)
class ConformerConsistency(ClsConsistency):
    """Mixin of a head of two branches, which the stock loss trains each by itself.

    The term compares the sum of their logits, of which the head makes its prediction.
    """

    lt_stock_losses = (ConformerHead._get_loss,)

    def lt_predicted_logits(self, cls_score: tuple[Tensor, Tensor]) -> Tensor:
        convolutions, transformer = cls_score
        return super().lt_predicted_logits(convolutions + transformer)

    def lt_scores_of(self, cls_score: tuple[Tensor, Tensor], images: list[int]) -> Any:
        return tuple(branch[images] for branch in cls_score)


@register_head_family(MultiTaskHead)
class MultiTaskConsistency(ConsistencyMixin):
    """Mixin of a head of several tasks: the head of each gets the term, with the same options.

    Its terms are ``<task>_loss_lt_cls``. A task compares the samples that have it, as its stock
    loss sees those alone.
    """

    @classmethod
    def lt_wrap(cls, head: Any, options: ConsistencyOptions) -> nn.Module:
        """Wraps the head of each task, and itself."""
        if options.across_ranks or (options.memory is not None and get_dist_info()[1] > 1):
            raise UnsupportedHeadError(
                f'{type(head).__name__} leaves out a task that no sample of a rank has, so that '
                'ranks cannot gather its predictions; expected across_ranks=False, and memory=None '
                "with several processes, and placement='rank' in the sampler"
            )
        for task, own in head.task_heads.items():
            family_of(own).lt_wrap(own, options)
            own.lt_is_task = True
            # The stock head has hidden it behind a function that leaves samples out.
            del own.loss
            own.loss = loss_convertor(own.loss, task)
        return cls.lt_add(head, replace(options, memory=None))

    def loss(self, feats: Any, data_samples: list[Any], **kwargs: Any) -> dict:
        for sample in data_samples:
            record = ImageRecord.read(sample)
            if not record.is_labelled:
                raise UnsupportedHeadError(
                    f'{type(self).__name__} leaves out the tasks that a sample has no label of, so '
                    'it compares nothing on unlabelled images; expected a labelled data set'
                )
            for task in sample.tasks:
                for name, value in record.metainfo().items():
                    sample.get(task).set_field(value, name, field_type='metainfo')
        return super().loss(feats, data_samples, **kwargs)


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


def _are_mixed(scores: Tensor, multi_label: bool) -> Tensor:
    """Which labels (N, C) are blends."""
    # A multi-label target sums to anything, but is yes or no; a blend lies between.
    mixed = (scores > 0) & (scores < 1)
    return mixed.any(dim=1) if multi_label else scores.amax(dim=1) < scores.sum(dim=1)


def _refuse_mixed_with_unlabelled(
    scores: Tensor, supervision: Supervision, multi_label: bool
) -> None:
    # An unlabelled image has a label of zeros: what is blended with it has a sum below 1.
    labels = scores[supervision.supervised_images]
    mixed = _are_mixed(labels, multi_label)
    if not multi_label:
        mixed = mixed | (labels.sum(dim=1) < 1)
    if bool(mixed.any()):
        raise ValueError(
            'the labels of the batch are mixed (gt_score), and there are unlabelled images in it, '
            'with which labelled ones would be mixed too; remove model.train_cfg.augments (or '
            'data_preprocessor.batch_augments)'
        )


def _refuse_mixed_memory(scores: Tensor, multi_label: bool) -> None:
    if bool(_are_mixed(scores, multi_label).any()):
        raise ValueError(
            'the labels of the batch are mixed (gt_score), and there is a memory: what is '
            'predicted for a mixed image is not comparable with what was predicted for the '
            'image in earlier epochs; remove model.train_cfg.augments (or '
            'data_preprocessor.batch_augments), or memory=dict(...) from the LossTransformHead'
        )
