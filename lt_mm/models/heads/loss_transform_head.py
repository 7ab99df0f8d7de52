"""``LossTransformHead``: the wrapper around stock heads, and what all wraps share.

A wrapped head *is* the stock head: :class:`LossTransformHead` builds it with the stock
registry and then adds a mixin to it (see :mod:`lt_mm.models.mixins`). So
parameter names, state dicts, predictions and ``isinstance`` are those of the stock
head by construction.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.logging import MessageHub
from torch import Tensor, nn

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency
from lt_mm.core.schedules import RhoConfig, RhoSchedule
from lt_mm.models.heads.ranks import OwnRank, exchange
from lt_mm.models.mixins import InstanceMixin, build_stock, mix_in
from lt_mm.registry import MODELS, register
from lt_mm.structures.errors import SAMPLER_HINT, UnpairedBatchError, UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord

_ACTIVATIONS = ('auto', 'softmax', 'sigmoid')
_PAIRINGS = ('gt', 'gt_nearest', 'iou')
_MIXED_LABELS = ('refuse', 'average')
# Batches without whole groups, in excess of those with, before training is stopped.
# A few are normal: a data set replaces an image whose augmentations all fail.
_PATIENCE = 10


@dataclass
class ConsistencyOptions:
    """Options of :class:`LossTransformHead`; see there."""

    rho: RhoConfig = 1.0
    rho_cls: RhoConfig | None = None
    rho_bbox: RhoConfig | None = None
    rho_mask: RhoConfig | None = None
    detach_mean: bool = False
    min_visibility: float = 0.3
    pairing: str = 'gt'
    temperature: float = 1.0
    activation: str = 'auto'
    mixed_labels: str = 'refuse'
    iou_threshold: float = 0.5
    score_threshold: float = 0.5
    max_candidates: int = 100
    mask_grid: int = 28
    across_ranks: bool = False
    allow_unrepeated: bool = False
    schedules: dict[str, RhoSchedule] = field(init=False)

    def __post_init__(self) -> None:
        _check_choice('pairing', self.pairing, _PAIRINGS)
        _check_choice('activation', self.activation, _ACTIVATIONS)
        _check_choice('mixed_labels', self.mixed_labels, _MIXED_LABELS)
        if not self.temperature > 0:
            raise ValueError(f'temperature is {self.temperature}; expected a number > 0')
        for name in ('min_visibility', 'iou_threshold', 'score_threshold'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is {getattr(self, name)}; expected a fraction in [0, 1]')
        for name in ('max_candidates', 'mask_grid'):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) > 0):
                raise ValueError(f'{name} is {getattr(self, name)!r}; expected a positive integer')
        self.schedules = {
            kind: RhoSchedule.from_config(self.rho if own is None else own)
            for kind, own in (
                ('cls', self.rho_cls),
                ('bbox', self.rho_bbox),
                ('mask', self.rho_mask),
            )
        }

    def rho_now(self, kind: str) -> float:
        """Rho of the term of one kind ('cls', 'bbox', 'mask') at this point of training."""
        schedule = self.schedules[kind]
        return schedule.at(0.0 if schedule.is_constant else training_progress())


@register(MODELS)
class LossTransformHead:
    """Builds a stock head and adds the consistency term to its loss.

    ``dict(type='lt_mm.LossTransformHead', head=<stock head>, rho=1.0)`` in the place of
    the stock head. Supported are

    - MMPretrain classification heads with logits of shape (N, C), multi-label ones
      included;
    - MMDetection's single-stage heads ``RetinaHead``, ``SSDHead``, ``ATSSHead``,
      ``GFLHead``, ``FCOSHead``, ``YOLOXHead``, ``DETRHead``, ``DeformableDETRHead``,
      ``DINOHead``, and ``RPNHead``, with subclasses that keep their losses;
    - ``roi_head``: ``StandardRoIHead``, ``CascadeRoIHead`` and their subclasses; wraps
      the box heads, the mask heads and the RoI samplers in it;
    - ``bbox_head`` or ``mask_head`` of such a RoI head by itself. Data samples go to
      the RoI head only, so ``train_cfg.rcnn.sampler`` must then be a
      ``dict(type='lt_mm.SourceTrackingSampler', sampler=<stock sampler>)``.

    The loss gets ``loss_lt_cls``, ``loss_lt_bbox`` and ``loss_lt_mask``, each
    rho * term. Logged beside them and not summed: ``lt_kl_cls``, ``lt_kl_bbox``,
    ``lt_kl_mask`` (the terms without rho), ``lt_num_pairs`` (paired predictions),
    ``lt_paired_share`` (share of the instances, or of the images of a classifier, that
    have a pair). The stock loss is computed once and stays as it is.

    Args:
        head: Config of the stock head (or a built one).
        rho: Weight of the terms: a number, or a schedule over training such as
            ``dict(type='linear', start=0, end=1, begin=0, finish=0.5)`` (also
            'cosine'), where begin and finish are parts of training. With 0 the terms
            are computed without graph, for the log; losses and gradients are those
            of the stock head, bit for bit.
        rho_cls: Own weight of the class term.
        rho_bbox: Own weight of the box term. That term is relative to the boxes' own
            size, so small boxes far from each other make it very large: from random
            initialisation, FCOS, YOLOX and DETR want a schedule that starts at 0.
        rho_mask: Own weight of the mask term.
        detach_mean: Whether the mean prediction counts as constant in the gradient.
        min_visibility: Instances less visible than this pair with nothing.
        pairing: 'gt': all predictions assigned to one annotation are positives of each
            other. 'gt_nearest': of those, in each replica, only the one whose
            restored box is nearest to the annotation (the paper's Resort). 'iou', for
            fine-tuning: no annotation; confident predictions of one class are matched
            greedily by the IoU of their restored boxes.
        temperature: Divides the logits in the class and mask terms.
        activation: 'softmax' or 'sigmoid' for the class term; 'auto' goes by the head.
        mixed_labels: What a classifier does where stock batch augments (Mixup, CutMix)
            mix each replica with another image: 'refuse' raises; 'average' trains all
            replicas of a source on the mean of their soft labels.
        iou_threshold: With 'iou', the smallest IoU of a prediction and its group.
        score_threshold: With 'iou', the smallest confidence of a prediction.
        max_candidates: With 'iou', at most so many predictions of an image take part,
            the most confident ones.
        mask_grid: Cells along each side of the grid on which masks are compared.
        across_ranks: Whether the replicas of a source lie on different ranks
            (``placement='spread'`` of the sampler). The ranks then exchange what pairs,
            and each computes the term of the joint batch; the gradient reaches the
            rank that made a prediction. The model wrapper must take the mean of the
            gradients over the ranks, as ``DistributedDataParallel`` does.
        allow_unrepeated: Whether batches may hold samples without a replica, beside
            groups: the sampler's ``repeat_fraction``. Otherwise training stops there,
            since such samples come from a batch size that cuts groups apart.
        **overrides: Further arguments, which the stock detectors add to their heads
            (``train_cfg``, ``test_cfg``); go to the stock head.

    Returns:
        The stock head, an instance of a subclass of its class.

    Raises:
        UnsupportedHeadError: If the head is none of the above.
        ValueError: If an option is out of range.
    """

    def __new__(
        cls,
        head: Any,
        rho: RhoConfig = 1.0,
        rho_cls: RhoConfig | None = None,
        rho_bbox: RhoConfig | None = None,
        rho_mask: RhoConfig | None = None,
        detach_mean: bool = False,
        min_visibility: float = 0.3,
        pairing: str = 'gt',
        temperature: float = 1.0,
        activation: str = 'auto',
        mixed_labels: str = 'refuse',
        iou_threshold: float = 0.5,
        score_threshold: float = 0.5,
        max_candidates: int = 100,
        mask_grid: int = 28,
        across_ranks: bool = False,
        allow_unrepeated: bool = False,
        **overrides: Any,
    ) -> nn.Module:
        options = ConsistencyOptions(
            rho=rho,
            rho_cls=rho_cls,
            rho_bbox=rho_bbox,
            rho_mask=rho_mask,
            detach_mean=detach_mean,
            min_visibility=min_visibility,
            pairing=pairing,
            temperature=temperature,
            activation=activation,
            mixed_labels=mixed_labels,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            max_candidates=max_candidates,
            mask_grid=mask_grid,
            across_ranks=across_ranks,
            allow_unrepeated=allow_unrepeated,
        )
        return wrap_head(build_stock(head, overrides), options)


def wrap_head(head: nn.Module, options: ConsistencyOptions) -> nn.Module:
    """Adds the term to a built stock head, in place; returns it."""
    for applies, wrap in _WRAPS:
        if applies(head):
            return wrap(head, options)
    raise UnsupportedHeadError(
        f'LossTransformHead cannot wrap {type(head).__name__}: nothing tells which of its '
        'predictions show the same instance; expected an MMPretrain classification head '
        'with logits, a StandardRoIHead or CascadeRoIHead, a BBoxHead, an FCNMaskHead, or '
        'a RetinaHead, SSDHead, ATSSHead, GFLHead, FCOSHead, YOLOXHead, DETRHead, '
        'DeformableDETRHead, DINOHead or RPNHead. Wrap one of these, or leave this head as '
        'it is: head='
        f"dict(type='{type(head).__name__}', ...)"
    )


_WRAPS: list[tuple] = []


def register_wrap(applies, wrap) -> None:
    """Adds a kind of head: a predicate on built heads and the function that wraps."""
    _WRAPS.append((applies, wrap))


class ConsistencyHead(InstanceMixin):
    """Base of the fronts that add the term to a head's loss.

    Attributes:
        lt_options: The options of the wrap.
        lt_micro_batches: What joins the micro-batches of a step
            (:mod:`lt_mm.engine.loops.micro_batches`), while one is run.
        lt_recorder: Told what is paired (:mod:`lt_mm.structures.pair_record`), while
            somebody wants to know.
    """

    prefix = 'LossTransform'
    lt_options: ConsistencyOptions
    lt_micro_batches: Any = None
    lt_recorder: Callable[[PairRecord], None] | None = None
    _lt_excess = 0

    def _term(self, kind: str, compute, losses: dict[str, Tensor]) -> None:
        """Adds rho * term and its unweighted value to the losses.

        Args:
            kind: 'cls', 'bbox' or 'mask'.
            compute: Function without arguments that gives the term, a scalar.
            losses: The loss dict of the stock head.
        """
        rho = self.lt_options.rho_now(kind)
        with torch.set_grad_enabled(torch.is_grad_enabled() and rho > 0):
            term = compute()
        losses[f'loss_lt_{kind}'] = term * rho
        losses[f'lt_kl_{kind}'] = term.detach()

    def _class_term(
        self, logits: Tensor, group_ids: Tensor, sigmoid: bool, avg_factor: float | None = None
    ) -> Tensor:
        options = self.lt_options
        activation = options.activation
        if activation == 'auto':
            activation = 'sigmoid' if sigmoid else 'softmax'
        consistency = bernoulli_consistency if activation == 'sigmoid' else categorical_consistency
        return consistency(
            logits,
            group_ids,
            temperature=options.temperature,
            detach_mean=options.detach_mean,
            avg_factor=avg_factor,
        )

    def _exchange(self, count: int, device: torch.device) -> OwnRank:
        """What joins ``count`` predictions with those of the other ranks or micro-batches."""
        if self.lt_micro_batches is not None:
            return self.lt_micro_batches.exchange(count, device)
        return exchange(self.lt_options.across_ranks, count, device)

    def _watch_groups(self, source_ids: list[int], device: torch.device) -> None:
        """Stops training that holds no replicas to pair, or only parts of groups.

        Not while rho is 0: then nothing is missed, and repetition may start later.
        Works on the host: ``source_ids`` are numbers from the metainfo. ``device`` is
        where the ranks exchange them, if they do.
        """
        options = self.lt_options
        if not any(options.rho_now(kind) for kind in options.schedules):
            return
        ranks = self._exchange(len(source_ids), device)
        source_ids = ranks.join_numbers(source_ids)
        if not ranks.is_complete:
            return
        sizes = Counter(source_ids)
        smallest = max if self.lt_options.allow_unrepeated else min
        whole = smallest(sizes.values(), default=2) > 1
        self._lt_excess = 0 if whole else self._lt_excess + 1
        if self._lt_excess < _PATIENCE:
            return
        if max(sizes.values()) == 1:
            found = 'no two samples of a batch are replicas of one source'
        else:
            found = (
                'the replicas of a source are split between batches (or only a part '
                'is repeated by intent: allow_unrepeated=True)'
            )
        raise UnpairedBatchError(
            f'in {_PATIENCE} training batches in a row {found} (the last one has '
            f'{len(source_ids)} samples: {_briefly(sizes)}), so the consistency term '
            f'has nothing to compare; {SAMPLER_HINT}'
        )


def add_consistency(
    front: type[ConsistencyHead], head: nn.Module, options: ConsistencyOptions
) -> nn.Module:
    """Puts ``front`` before the head's own class; the head is modified."""
    mix_in(front, head)
    head.lt_options = options
    return head


def paired_share(paired: Tensor, instances: Tensor, count: int) -> Tensor:
    """Share of instances that have a paired prediction.

    Args:
        paired: (N,) bool, which predictions have a pair.
        instances: (N,) int64 below ``count``, the instance of each prediction.
        count: Number of instances in the batch.

    Returns:
        Scalar float32 in [0, 1]; 0 without instances.
    """
    hit = instances.new_zeros(max(count, 1)).index_add_(0, instances, paired.long())
    return (hit > 0).float().mean()


def training_progress() -> float:
    """The finished part of training, in [0, 1], as the Runner tells it.

    Raises:
        RuntimeError: Outside a Runner's training loop.
    """
    hub = MessageHub.get_current_instance()
    if not {'iter', 'max_iters'} <= hub.runtime_info.keys():
        raise RuntimeError(
            'rho is a schedule over training, but no Runner tells how far training is; '
            'train with a Runner whose default_hooks have runtime_info=dict(type='
            "'RuntimeInfoHook'), or give rho as a number"
        )
    return hub.get_info('iter') / max(hub.get_info('max_iters'), 1)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name} is {value!r}; expected one of {tuple(choices)}')


def _briefly(sizes: Counter) -> str:
    shown = ', '.join(f'source {source} x {size}' for source, size in list(sizes.items())[:6])
    return shown + (', ...' if len(sizes) > 6 else '')
