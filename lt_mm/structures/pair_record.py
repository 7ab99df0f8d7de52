"""The record of the pairs that a wrapped head forms in a step, and how to collect it.

A wrapped head has an attribute ``lt_recorder``, usually None. :func:`recording` sets it to a
function of one :class:`PairRecord`, which the head calls when it has formed its pairs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class PairRecord:
    """P predictions for a batch that may pair, without gradient.

    Attributes:
        kind: 'cls' (images), 'bbox' or 'mask'.
        images: (P,) int64, the image of the batch that each prediction is for.
        source_ids: (P,) int64, the source that each prediction belongs to. In a mosaic it
            may differ from the source of the image.
        group_ids: (P,) int64, the pairing.
        paired: (P,) bool, whether a prediction has a positive; with ``across_ranks`` the
            positive may be on another rank.
        labels: (P,) int64, predicted classes.
        scores: (P,) their probabilities; ones for 'mask', whose classes are annotated.
        boxes: (P, 4) xyxy, pixels of the replicas; None for 'cls'.
        restored: (P, 4) xyxy, pixels of the sources; None for 'cls'.
        masks: (P, h, w) probabilities on a grid over the box; for 'mask' only.
        logits: (P, C) class logits; for 'cls' only.
    """

    kind: str
    images: Tensor
    source_ids: Tensor
    group_ids: Tensor
    paired: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor | None = None
    restored: Tensor | None = None
    masks: Tensor | None = None
    logits: Tensor | None = None

    def rows(self, chosen: Sequence[int] | Tensor) -> 'PairRecord':
        """Some of the predictions."""
        index = torch.as_tensor(chosen, dtype=torch.int64, device=self.images.device)
        return _each(lambda value: value[index], [self])

    def cpu(self) -> 'PairRecord':
        """The same, detached and on the CPU."""
        return _each(lambda value: value.detach().cpu(), [self])


def _each(function: Callable, records: Sequence[PairRecord]) -> PairRecord:
    """Applies a function to the corresponding tensors of some records."""
    made = {}
    for name in [field.name for field in fields(PairRecord)]:
        values: list = [getattr(record, name) for record in records]
        made[name] = function(*values) if isinstance(values[0], Tensor) else values[0]
    return PairRecord(**made)


def recorded_heads(model: nn.Module) -> dict[str, Any]:
    """The wrapped heads of a model, by their names in it."""
    return {name: part for name, part in model.named_modules() if hasattr(part, 'lt_recorder')}


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, list[PairRecord]]]:
    """Collects the records of all wrapped heads of a model while the context is open.

    However the context is left, no head keeps a recorder.

    Args:
        model: A model, not wrapped for several ranks.

    Yields:
        For each wrapped head, by its name in the model, a list that its records are added
        to. That of a RoI head stays empty: its box and mask heads form the pairs.
    """
    heads = recorded_heads(model)
    records: dict[str, list[PairRecord]] = {name: [] for name in heads}
    try:
        for name, head in heads.items():
            head.lt_recorder = records[name].append
        yield records
    finally:
        for head in heads.values():
            vars(head).pop('lt_recorder', None)
