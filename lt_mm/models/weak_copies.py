"""Weak copies of unlabelled images go through a model without a graph, or through its average.

A prediction for a weak copy is a target without gradient. So the pass of the weak copies through
backbone and neck needs no graph, and costs a forward pass instead of a forward and a backward one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.mixins import InstanceMixin, mix_in
from lt_mm.structures.errors import UnsupportedHeadError
from lt_mm.structures.supervision import Supervision


class WeakCopiesMixin(InstanceMixin):
    """Mixin of a stock model, whose weak unlabelled copies go through without a graph.

    Attributes:
        lt_teacher: The averaged model that predicts for them; None: the model itself.
    """

    prefix = 'WeakCopies'
    lt_teacher: Any = None
    _lt_rows: 'WeakRows | None' = None

    def loss(self, inputs: Tensor, data_samples: list[Any], *args: Any, **kwargs: Any) -> dict:
        heads = comparing_heads_of(self)
        supervision = Supervision.of(data_samples, next(iter(heads.values())).lt_options.supervise)
        rows = WeakRows.of(supervision, inputs.device)
        if rows is None:
            return super().loss(inputs, data_samples, *args, **kwargs)
        self._lt_rows = rows
        try:
            if self.lt_teacher is not None:
                for name, head in heads.items():
                    head.lt_teacher = TeacherHead(self.lt_teacher.get_submodule(name), rows)
            return super().loss(inputs, data_samples, *args, **kwargs)
        finally:
            self._lt_rows = None
            for head in heads.values():
                head.lt_teacher = None

    def extract_feat(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        own = super().extract_feat
        if self._lt_rows is None:
            return own(inputs, *args, **kwargs)
        weak = own if self.lt_teacher is None else self.lt_teacher.extract_feat
        return self._lt_rows.apart(
            lambda part: weak(part, *args, **kwargs),
            lambda part: own(part, *args, **kwargs),
            inputs,
        )


class WeakRows:
    """Which images of a batch are weak copies without labels.

    Args:
        weak: (n,) int64.
        others: (B - n,) int64.
    """

    def __init__(self, weak: Tensor, others: Tensor) -> None:
        self._weak, self._others = weak, others
        self._order = torch.cat([weak, others]).argsort()

    @classmethod
    def of(cls, supervision: Supervision, device: torch.device) -> 'WeakRows | None':
        """None where there are none."""
        is_apart = [
            weak and not supervised
            for weak, supervised in zip(supervision.weak, supervision.supervised)
        ]
        if not any(is_apart):
            return None
        rows = torch.tensor(is_apart, device=device)
        return cls(rows.nonzero()[:, 0], (~rows).nonzero()[:, 0])

    def apart(self, weak: Callable, others: Callable, batch: Any) -> Any:
        """Calls one function for the weak copies, without a graph, and another for the rest.

        Args:
            weak: Of a part of the batch.
            others: Likewise.
            batch: A tensor, or a nest of lists of tensors, with a row for each image.

        Returns:
            What they give, a nest of the same form, in the order of the batch.
        """
        with torch.no_grad():
            first = weak(_each(lambda value: value[self._weak], batch))
        # Autocast keeps weights that it has cast. Without a graph they would get no gradient below.
        torch.clear_autocast_cache()
        second = others(_each(lambda value: value[self._others], batch))
        return _each(lambda *parts: torch.cat(parts)[self._order], first, second)


class TeacherHead:
    """Lets the head of an averaged model predict for the weak copies.

    Args:
        head: Of the averaged model; in eval mode.
        rows: The weak copies.
    """

    def __init__(self, head: nn.Module, rows: WeakRows) -> None:
        self._head, self._rows = head, rows

    def __call__(self, forward: Callable, feats: Any) -> Any:
        """The predictions for all images: ``forward`` makes those for the others."""
        return self._rows.apart(self._head.forward, forward, feats)


def set_weak_copies_apart(model: Any, teacher: Any = None) -> None:
    """Adds :class:`WeakCopiesMixin` to a built model, in place.

    Args:
        model: A stock model with wrapped heads, of which one has ``weak_target``.
        teacher: The averaged model, or None.

    Raises:
        ValueError: If no head has ``weak_target``.
        UnsupportedHeadError: If a head cannot have a teacher.
    """
    heads = comparing_heads_of(model)
    if not any(head.lt_options.weak_target is not None for head in heads.values()):
        raise ValueError(
            'no head compares with the predictions for weak copies; expected '
            "dict(type='lt_mm.LossTransformHead', head=..., weak_target=dict(temperature=0.4, "
            "threshold=0.8)), or no dict(type='lt_mm.WeakTargetHook') in custom_hooks"
        )
    if teacher is not None:
        for name, head in heads.items():
            if not head.lt_takes_teacher:
                raise UnsupportedHeadError(
                    f'{name} is a {type(head).__name__}, whose predictions for some images cannot '
                    "be replaced by those of another model; expected a classifier's or a "
                    'single-stage head, or weak_target=dict(teacher=False, ...)'
                )
    if not isinstance(model, WeakCopiesMixin):
        mix_in(WeakCopiesMixin, model)
    # Not as a part of the model, whose weights are saved and trained.
    object.__setattr__(model, 'lt_teacher', teacher)


def comparing_heads_of(model: nn.Module) -> dict[str, Any]:
    """The wrapped heads of a model, by their names in it."""
    return {
        name: part for name, part in model.named_modules() if isinstance(part, ConsistencyMixin)
    }


def _each(function: Callable, *nests: Any) -> Any:
    if isinstance(nests[0], Tensor):
        return function(*nests)
    if isinstance(nests[0], Sequence):
        kind: Any = type(nests[0])
        return kind(_each(function, *parts) for parts in zip(*nests))
    raise UnsupportedHeadError(
        f'between images and predictions there is a {type(nests[0]).__name__}; expected tensors '
        'with a row for each image, to tell those of weak copies apart. Leave '
        "dict(type='lt_mm.WeakTargetHook') out: the copies then go through with a graph"
    )
