"""The options of a wrapped head, and the weight of its terms over training."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from mmengine.logging import MessageHub

from lt_mm.core.schedules import RhoConfig, RhoPhases, RhoSchedule, rho_schedule
from lt_mm.models.memory import MemoryOptions

_ACTIVATIONS = ('auto', 'softmax', 'sigmoid')
_PAIRINGS = ('gt', 'gt_score', 'gt_mean', 'gt_all', 'iou')
_STRENGTHS = ('stock', 'plain')
_MIXED_LABELS = ('refuse', 'average')
_SUPERVISE = ('all', 'one')
KINDS = ('cls', 'bbox', 'mask', 'obj')


@dataclass(frozen=True)
class WeakTargetOptions:
    """The option ``weak_target=dict(...)`` of a wrapped head.

    Args:
        temperature: Divides the logits of the weak copy; below 1 its probabilities are sharper.
        threshold: A prediction is a target if its most probable class, at temperature 1, is at
            least so probable.
        teacher: Whether the predictions for weak copies are those of the averaged model of
            MMEngine's ``EMAHook``; needs ``dict(type='lt_mm.WeakTargetHook')`` in
            ``custom_hooks``.

    Raises:
        ValueError: If a number is out of range.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    teacher: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(
                f'weak_target.temperature is {self.temperature}; expected a number > 0'
            )
        if not 0 <= self.threshold < 1:
            raise ValueError(
                f'weak_target.threshold is {self.threshold}; expected a probability in [0, 1)'
            )


@dataclass
class ConsistencyOptions:
    """What :class:`LossTransformHead` and :func:`wrap_head` take, beside the head.

    Args:
        rho: Weight of the terms: a number, or a schedule over training such as
            ``dict(type='linear', start=0, end=1, begin=0, finish=0.5)`` (also 'cosine',
            'gaussian'; a list of such dicts for phases that follow each other),
            where begin and finish are parts of training. With 0 the terms are computed
            without a graph, for the log alone; losses and gradients are those of the stock
            head, bit for bit.
        rho_cls: Weight of the class term; ``rho`` if None.
        rho_bbox: Weight of the box term; ``rho`` if None.
        rho_mask: Weight of the mask term; ``rho`` if None.
        rho_obj: Weight of the objectness term of YOLOX and YOLOv3; ``rho`` if None.
        detach_mean: Whether the mean prediction counts as constant in the gradient.
        min_visibility: Instances that are less visible than this pair with nothing.
        pairing: 'gt': of the predictions assigned to one annotation, the one in each replica
            that is nearest to the annotation (the paper's Resort), by their IoU in the
            replica. 'gt_score': the one in each replica with the highest score instead, which
            non-maximum suppression would keep; of masks, which have none, the nearest.
            'gt_mean': the mean of all of them in each replica, compared between
            replicas. 'gt_all': all of them, those of one replica too. 'iou', for fine-tuning:
            no annotation is used; confident predictions of one class are matched greedily by
            the IoU of their restored boxes.
        temperature: Divides the logits in the class, mask and objectness terms.
        activation: 'softmax' or 'sigmoid' for the class term; 'auto' follows the stock loss.
        strength: 'stock': the class term is scaled as the stock class loss is, by its
            ``loss_weight``, its focal modulation and the number of its predictions that each
            paired one stands for, so that rho means about the same for every loss. 'plain':
            the formula of the paper, KL / n.
        mixed_labels: What a classifier does where stock batch augments (Mixup, CutMix) mix
            each replica with another image: 'refuse' raises; 'average' trains all replicas
            of a source on the mean of their soft labels.
        iou_threshold: With 'iou', the smallest IoU of a prediction and its group.
        score_threshold: With 'iou', the smallest confidence of a prediction: the score that the
            head predicts, with its objectness, centerness or IoU where it has one.
        max_candidates: With 'iou', the number of predictions of an image that take part at
            most; the most confident ones do.
        mask_grid: Cells along each side of the grid on which masks are compared.
        across_ranks: Whether the replicas of a source lie on different ranks
            (``placement='spread'`` of the sampler). The ranks then exchange their candidates,
            and each computes the term of the whole batch; the gradient reaches the rank that
            made a prediction. The model wrapper must average the gradients over the ranks,
            as ``DistributedDataParallel`` does.
        memory: ``dict(momentum=0.7)``: predictions are compared with the running mean of those of
            earlier epochs for the same annotation (the same image, for classifiers), which
            replicas in the batch join. Works with the stock sampler. The arguments are those
            of :class:`~lt_mm.models.memory.MemoryOptions`.
        supervise: 'all': the stock loss sees all labelled images. 'one': of the copies of a
            source only one, the weak one (:class:`~lt_mm.datasets.WithWeakCopies`) or else the
            first, as in AugMix; the term sees all.
        weak_target: ``dict(temperature=0.4, threshold=0.8)``: copies are not compared with their
            mean, but with the prediction for the weak one among them, without gradient. The
            arguments are those of :class:`WeakTargetOptions`.
        allow_unrepeated: Whether batches may hold samples without a replica, beside groups:
            the sampler's ``repeat_fraction``. Otherwise training stops there, since such
            samples usually mean that the batch size cuts groups apart.

    Raises:
        ValueError: If an option is out of range.
    """

    rho: RhoConfig = 1.0
    rho_cls: RhoConfig | None = None
    rho_bbox: RhoConfig | None = None
    rho_mask: RhoConfig | None = None
    rho_obj: RhoConfig | None = None
    detach_mean: bool = False
    min_visibility: float = 0.3
    pairing: str = 'gt'
    temperature: float = 1.0
    activation: str = 'auto'
    strength: str = 'stock'
    mixed_labels: str = 'refuse'
    iou_threshold: float = 0.5
    score_threshold: float = 0.5
    max_candidates: int = 100
    mask_grid: int = 28
    across_ranks: bool = False
    allow_unrepeated: bool = False
    # A dict in configs; made into MemoryOptions below.
    memory: Any = None
    supervise: str = 'all'
    # Likewise.
    weak_target: Any = None
    schedules: dict[str, RhoSchedule | RhoPhases] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_choice('pairing', self.pairing, _PAIRINGS)
        _check_choice('activation', self.activation, _ACTIVATIONS)
        _check_choice('strength', self.strength, _STRENGTHS)
        _check_choice('mixed_labels', self.mixed_labels, _MIXED_LABELS)
        if not self.temperature > 0:
            raise ValueError(f'temperature is {self.temperature}; expected a number > 0')
        for name in ('min_visibility', 'iou_threshold', 'score_threshold'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} is {getattr(self, name)}; expected a fraction in [0, 1]')
        for name in ('max_candidates', 'mask_grid'):
            value = getattr(self, name)
            if not (isinstance(value, int) and value > 0):
                raise ValueError(f'{name} is {value!r}; expected a positive integer')
        self.memory: MemoryOptions | None = MemoryOptions.from_config(self.memory)
        if self.memory is not None and self.pairing not in ('gt', 'gt_score', 'gt_mean'):
            raise ValueError(
                f'pairing is {self.pairing!r} and there is a memory, which keeps one prediction of '
                "an annotation for each replica; expected pairing='gt' (the default), 'gt_score' "
                "or 'gt_mean', or memory=None"
            )
        _check_choice('supervise', self.supervise, _SUPERVISE)
        if self.supervise == 'one' and self.across_ranks:
            raise ValueError(
                "supervise='one' with across_ranks=True, where each rank has one copy of a source; "
                "expected across_ranks=False, with placement='rank' in the sampler"
            )
        self._settle_weak_target()
        self.schedules = {
            kind: rho_schedule(self.rho if own is None else own)
            for kind, own in zip(KINDS, (self.rho_cls, self.rho_bbox, self.rho_mask, self.rho_obj))
        }

    def _settle_weak_target(self) -> None:
        if self.weak_target is None:
            return
        if not isinstance(self.weak_target, WeakTargetOptions):
            self.weak_target = WeakTargetOptions(**self.weak_target)
        others = dict(memory=None, across_ranks=False)
        for name, expected in others.items():
            if getattr(self, name) != expected:
                raise ValueError(
                    f'{name}={getattr(self, name)} stands beside weak_target; expected '
                    f'{name}={expected}: a copy has one target'
                )
        if self.pairing not in ('gt', 'gt_score', 'iou'):
            raise ValueError(
                f'pairing is {self.pairing!r} beside weak_target, which is one prediction of the '
                "weak copy; expected pairing='gt' (the default), 'gt_score' or 'iou'"
            )

    def rho_now(self, kind: str) -> float:
        """Rho of the term of one kind ('cls', 'bbox', 'mask', 'obj') at this point of training."""
        schedule = self.schedules[kind]
        return schedule.at(0.0 if schedule.is_constant else training_progress())

    @property
    def is_baseline(self) -> bool:
        """Whether no term ever has a weight: the stock head, with the terms in its log."""
        schedules = self.schedules.values()
        return all(each.is_constant and each.at(0.0) == 0 for each in schedules)

    def is_active(self) -> bool:
        """Whether any term has a weight at this point of training."""
        return any(self.rho_now(kind) for kind in KINDS)


def split_options(given: dict[str, Any]) -> tuple[ConsistencyOptions, dict[str, Any]]:
    """The options among keyword arguments, and the other arguments."""
    names = {each.name for each in fields(ConsistencyOptions) if each.init}
    options = {name: value for name, value in given.items() if name in names}
    others = {name: value for name, value in given.items() if name not in names}
    return ConsistencyOptions(**options), others


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
