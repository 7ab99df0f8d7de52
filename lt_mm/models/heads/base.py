"""What all wrapped heads share: adding a term, gathering the batch, watching its groups."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from mmengine.dist import get_dist_info
from torch import Tensor, nn

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency, non_negative
from lt_mm.core.memory_codes import ClassCode, Code, class_probabilities
from lt_mm.core.sampling.replicas import holds_whole_groups
from lt_mm.core.weak_targets import confident_probabilities, weak_targets
from lt_mm.models.heads.class_losses import ClassLoss
from lt_mm.models.heads.empty_terms import EmptyTerms
from lt_mm.models.heads.gathering import GatheredBatch, Part, gather_ranks, join_parts
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.models.heads.pairing import Pairs
from lt_mm.models.memory import HeadMemory
from lt_mm.models.mixins import InstanceMixin, mix_in
from lt_mm.structures import comparing_heads
from lt_mm.structures.errors import SAMPLER_HINT, UnpairedBatchError, UnsupportedHeadError
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.supervision import Supervision

# Batches in a row without whole groups before training is stopped where nothing tells the
# number of replicas. A few are normal: a data set may replace an image.
_PATIENCE = 10


class ConsistencyMixin(InstanceMixin):
    """Base of the mixins that add the consistency term to a head's loss.

    What a mixin adds to a stock head has a name that begins with ``lt_``.

    Attributes:
        lt_heads: The stock classes that the mixin is registered for; set by
            :func:`~lt_mm.models.heads.head_families.register_head_family`.
        lt_options: The options of the wrap.
        lt_key_prefix: What the keys of the loss dict begin with, beside ``loss_``.
        lt_recorder: Called with what is paired (:mod:`lt_mm.structures.pair_record`), while
            somebody wants to know.
        lt_memory: With ``memory=dict(...)``, what the head predicted in earlier epochs.
        lt_splits_batches: Whether the stock loss of some images of a batch can be taken alone.
        lt_takes_teacher: Whether its predictions for some images may come from another head.
        lt_teacher: Gives them, within a training step (:mod:`lt_mm.models.weak_copies`).
    """

    prefix = 'LossTransform'
    lt_heads: tuple[type, ...] = ()
    lt_options: ConsistencyOptions
    lt_key_prefix = ''
    lt_recorder: Callable[[PairRecord], None] | None = None
    lt_empty_terms: EmptyTerms
    lt_memory: HeadMemory | None = None
    lt_splits_batches = True
    lt_takes_teacher = False
    lt_teacher: Callable[[Callable, Any], Any] | None = None
    _lt_excess = 0

    @classmethod
    def lt_wrap(cls, head: Any, options: ConsistencyOptions) -> nn.Module:
        """Adds this mixin to a built head, in place; returns the head.

        Raises:
            UnsupportedHeadError: If the term cannot be added to this head.
        """
        cls.lt_check(head)
        return cls.lt_add(head, options)

    @classmethod
    def lt_add(cls, head: Any, options: ConsistencyOptions) -> nn.Module:
        """Adds this mixin to a built head without looking at it."""
        mix_in(cls, head)
        comparing_heads.enrol(head)
        head.lt_options = options
        head.lt_empty_terms = EmptyTerms(cls.lt_key_prefix + type(head).__name__)
        if options.memory is not None:
            head.lt_memory = HeadMemory(options.memory)
        return head

    @classmethod
    def lt_check(cls, head: Any) -> None:
        """Raises an UnsupportedHeadError if the head is not what the mixin reads."""

    def extra_repr(self) -> str:
        """What ``print(model)`` shows of the head: its options."""
        return '\n'.join(filter(None, [super().extra_repr(), repr(self.lt_options)]))

    def lt_with_graph(self, kind: str) -> torch.set_grad_enabled:
        """Context in which the term of a kind is computed: with a graph where it has weight."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.lt_options.rho_now(kind) > 0)

    def lt_add_term(
        self,
        kind: str,
        compute: Callable[[Pairs], Tensor],
        pairs: Pairs,
        batch: GatheredBatch,
        losses: dict[str, Any],
    ) -> None:
        """Adds rho * term and its unweighted value to the losses.

        With ``pairing='gt_all'`` also the share of the term that lies between replicas; with
        the others a replica has one prediction, or one mean, in a group, and the share is 1.

        Args:
            kind: 'cls', 'bbox', 'mask' or 'obj'.
            compute: Gives the term of the whole batch, a scalar, for pairs of its candidates.
            pairs: What is compared.
            batch: What it is computed on.
            losses: The loss dict of the stock head.
        """
        with self.lt_with_graph(kind):
            term = non_negative(compute(pairs))
        losses[f'loss_{self.lt_key_prefix}lt_{kind}'] = term * self.lt_options.rho_now(kind)
        losses[f'{self.lt_key_prefix}lt_kl_{kind}'] = term.detach()
        if self.lt_options.pairing == 'gt_all' and 'instances' in batch.columns:
            with torch.no_grad():
                between = compute(pairs.between_replicas(batch.columns['images']))
            share = torch.where(term > 0, between / term, 1.0)
            losses[f'{self.lt_key_prefix}lt_between_{kind}'] = share

    def lt_add_counts(self, paired: Tensor, share: Tensor, losses: dict[str, Any]) -> None:
        """Adds how many predictions of this part are paired, and their share, for the log."""
        self.lt_add_count('num_paired', paired, losses)
        losses[f'{self.lt_key_prefix}lt_paired_share'] = share

    def lt_add_count(self, name: str, counted: Tensor, losses: dict[str, Any]) -> None:
        """Adds how many predictions of this part are marked, for the log."""
        losses[f'{self.lt_key_prefix}lt_{name}'] = counted.sum().float()

    def lt_watch_term(self, kind: str, remaining: dict[str, Tensor]) -> None:
        """Has the log say so if a term that has weight compares nothing for long.

        Args:
            kind: 'cls', 'bbox', 'mask' or 'obj'.
            remaining: See :meth:`EmptyTerms.watch`.
        """
        # A memory begins empty.
        is_due = self.lt_memory is None or self.lt_memory.knows_all
        if is_due and self.lt_options.rho_now(kind) > 0:
            self.lt_empty_terms.watch(kind, remaining)

    def lt_class_term(
        self,
        logits: Tensor,
        pairs: Pairs,
        sigmoid: bool,
        avg_factor: float | None = None,
        stands_for: Tensor | float = 1.0,
    ) -> Tensor:
        """The class term, with the activation and the strength of the options.

        Args:
            logits: (N, C); receives gradient.
            pairs: What is compared.
            sigmoid: Whether the stock loss reads the logits as independent Bernoullis.
            avg_factor: n of the formula; N unless given.
            stands_for: How many predictions of the stock loss each compared one stands for.
        """
        return self._lt_logit_term(
            'cls',
            logits,
            pairs,
            self._lt_activates_with_sigmoid(sigmoid),
            ClassLoss.read(getattr(self, 'loss_cls', getattr(self, 'loss_module', None))),
            avg_factor,
            stands_for,
        )

    def lt_objectness_term(
        self,
        logits: Tensor,
        pairs: Pairs,
        loss: Any,
        avg_factor: float,
        stands_for: Tensor | float = 1.0,
    ) -> Tensor:
        """The objectness term: one Bernoulli a prediction, with the strength of the options.

        Args:
            logits: (N, 1); receives gradient.
            pairs: What is compared.
            loss: The stock loss of the objectness. There are no classes that all copies deny, so
                it is modulated only if this loss is.
            avg_factor: n of the formula.
            stands_for: As of :meth:`lt_class_term`.
        """
        read = ClassLoss.read(loss, default=None)
        return self._lt_logit_term('obj', logits, pairs, True, read, avg_factor, stands_for)

    def _lt_logit_term(
        self,
        kind: str,
        logits: Tensor,
        pairs: Pairs,
        sigmoid: bool,
        loss: ClassLoss,
        avg_factor: float | None,
        stands_for: Tensor | float,
    ) -> Tensor:
        options = self.lt_options
        if pairs.cells is not None:
            logits = pairs.cells.mean_logits(logits, sigmoid, options.temperature)
        arguments: dict[str, Any] = dict(
            temperature=options.temperature,
            detach_mean=options.detach_mean,
            avg_factor=avg_factor,
            target=pairs.targets.get(kind),
        )
        factor: Tensor | float = 1.0
        if options.strength == 'stock':
            factor = loss.weight * stands_for
            if sigmoid:
                arguments['modulation'] = loss.modulation
        consistency = bernoulli_consistency if sigmoid else categorical_consistency
        return factor * consistency(logits, pairs.compared_ids, **arguments)

    def _lt_activates_with_sigmoid(self, stock: bool) -> bool:
        """Whether the class term takes sigmoids, given whether the stock loss does."""
        activation = self.lt_options.activation
        return stock if activation == 'auto' else activation == 'sigmoid'

    def lt_remember_classes(
        self, logits: Tensor, pairs: Pairs, sigmoid: bool
    ) -> tuple[Code, Tensor]:
        """What a memory keeps of class logits (Q, C): the code and the probabilities."""
        return self._lt_remember_logits(logits, pairs, self._lt_activates_with_sigmoid(sigmoid))

    def lt_remember_objectness(self, logits: Tensor, pairs: Pairs) -> tuple[Code, Tensor]:
        """What a memory keeps of objectness logits (Q, 1): the code and the probabilities."""
        return self._lt_remember_logits(logits, pairs, sigmoid=True)

    @torch.no_grad()
    def _lt_remember_logits(
        self, logits: Tensor, pairs: Pairs, sigmoid: bool
    ) -> tuple[Code, Tensor]:
        options = self.lt_options
        assert options.memory is not None
        if pairs.cells is not None:
            logits = pairs.cells.mean_logits(logits, sigmoid, options.temperature)
        code = ClassCode(logits.shape[1], options.memory.num_kept, sigmoid)
        return code, class_probabilities(logits, sigmoid, options.temperature)

    def lt_check_split(self, supervision: Supervision) -> None:
        """Refuses batches with images that the stock loss must not see, if they cannot be left out.

        Raises:
            UnsupportedHeadError: If there are some.
        """
        if not (supervision.is_stock or self.lt_splits_batches):
            raise UnsupportedHeadError(
                f'{type(self).__name__} computes its losses from what it keeps of the whole batch, '
                'so images cannot be left out of them; expected a data set of labelled images '
                "alone, and supervise='all' in the LossTransformHead"
            )

    def lt_forward(self, forward: Callable, feats: Any) -> Any:
        """What ``forward`` predicts from features; for weak copies, what a teacher does."""
        if self.lt_teacher is not None:
            return self.lt_teacher(forward, feats)
        return forward(feats)

    def lt_check_teacher(self) -> None:
        """Makes sure that weak copies are the teacher's, where that is wanted."""
        if self.lt_options.weak_target.teacher and self.lt_teacher is None:
            raise ValueError(
                'weak_target=dict(teacher=True), and nothing lets a teacher predict; expected '
                "dict(type='lt_mm.WeakTargetHook') in custom_hooks, beside an EMAHook"
            )

    @torch.no_grad()
    def lt_weak_class_targets(
        self, logits: Tensor, group_ids: Tensor, is_weak: Tensor, sigmoid: bool
    ) -> Tensor:
        """(Q, C) the class probabilities that predictions are compared with, of the weak copies.

        Args:
            logits: (Q, C).
            group_ids: (Q,) int64, the pairing.
            is_weak: (Q,) bool.
            sigmoid: Whether the stock loss reads the logits as independent Bernoullis.
        """
        options = self.lt_options.weak_target
        confident = confident_probabilities(
            logits, self._lt_activates_with_sigmoid(sigmoid), options.temperature, options.threshold
        )
        return weak_targets(confident, group_ids, is_weak)

    @torch.no_grad()
    def lt_remember(
        self, pairs: Pairs, columns: dict[str, Tensor], remembered: dict[str, tuple[Code, Tensor]]
    ) -> Pairs:
        """The pairs with the means of earlier epochs; takes the predictions into these.

        Args:
            pairs: Among Q candidates.
            columns: Of the whole batch: 'instances' (Q, 2) int64, source and place of the
                annotation, and 'checks' (Q,) int64 (:mod:`lt_mm.models.memory`).
            remembered: For each kind of term the code and the predictions (Q, ...), NaN where
                they are not to be compared.
        """
        if self.lt_memory is None:
            return pairs
        targets = self.lt_memory.compare(
            columns['instances'],
            pairs.compared_ids >= 0,
            columns['checks'],
            {kind: code for kind, (code, _) in remembered.items()},
            {kind: values for kind, (_, values) in remembered.items()},
        )
        return replace(pairs, targets=targets)

    @property
    def lt_joins_ranks(self) -> bool:
        """Whether the candidates of several ranks are gathered."""
        # With a memory all ranks have to know what one of them saw.
        joins = self.lt_options.across_ranks or self.lt_memory is not None
        return joins and get_dist_info()[1] > 1

    def lt_gather(self, part: Part) -> GatheredBatch:
        """The candidates of the whole batch, of which this process holds a part."""
        batch = gather_ranks(part) if self.lt_joins_ranks else join_parts([part], 0)
        self._lt_watch_groups(batch)
        return batch

    def _lt_watch_groups(self, batch: GatheredBatch) -> None:
        """Stops training that cuts groups apart or holds no replicas to pair.

        Where the sampler's number of replicas is known, at the first batch with a cut group,
        unless the data set replaced an image in it. Otherwise after some batches in a row.
        Not while rho is 0: then nothing is missed, and repetition may start later; nor with a
        memory, whose replicas need not be in the batch. Works on the host: what the batch
        tells are numbers from the metainfo.
        """
        if self.lt_memory is not None or not self.lt_options.is_active():
            return
        # Those that the sampler shows once, beside groups of unlabelled ones, need no replica.
        shown = [
            (source, count)
            for source, count in zip(batch.source_ids, batch.num_replicas)
            if count != 1
        ]
        source_ids = [source for source, _ in shown]
        num_replicas = (shown[0][1] if shown else 1) or None
        partly = self.lt_options.allow_unrepeated
        has_fitting_size = num_replicas is None or len(source_ids) % num_replicas == 0
        if has_fitting_size and batch.num_stand_ins:
            return
        # Where ranks gather, the samples of a unit are not consecutive.
        is_in_order = not (partly and self.lt_options.across_ranks)
        whole = has_fitting_size and holds_whole_groups(
            source_ids, num_replicas if is_in_order else None, partly
        )
        self._lt_excess = 0 if whole else self._lt_excess + 1
        is_certain = not has_fitting_size or (num_replicas is not None and not partly)
        if not whole and (is_certain or self._lt_excess >= _PATIENCE):
            raise UnpairedBatchError(_describe(source_ids, num_replicas, self._lt_excess))


def _describe(source_ids: list[int], num_replicas: int | None, num_batches: int) -> str:
    sizes = Counter(source_ids)
    wanted = 'groups' if num_replicas is None else f'groups of {num_replicas}'
    if max(sizes.values(), default=1) == 1:
        found = 'no two samples of a batch are replicas of one source'
    else:
        found = (
            f'the replicas of a source are split between batches: not all are whole {wanted} '
            '(if only a part is repeated by intent: allow_unrepeated=True in the head)'
        )
    shown = ', '.join(f'source {source} x {size}' for source, size in list(sizes.items())[:6])
    return (
        f'in {num_batches} training batches in a row {found}. The last one has '
        f'{len(source_ids)} samples: {shown}{", ..." if len(sizes) > 6 else ""}. What is '
        f'cut off is compared with nothing; {SAMPLER_HINT}. A data set that replaces an image '
        'has to leave that to InvertiblePipeline, which records it'
    )
