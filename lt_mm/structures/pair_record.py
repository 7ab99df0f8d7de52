"""The pairs of a step, as a wrapped head reports them on request.

``head.lt_recorder``, usually None, is a function of one :class:`PairRecord`; a wrapped
head calls it when it has formed its pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class PairRecord:
    """P predictions for a batch that may pair, without gradient.

    Attributes:
        kind: 'cls' (images), 'bbox' or 'mask'.
        images: (P,) int64, the image of the batch that each is for.
        source_ids: (P,) int64, the source that each belongs to. In a mosaic it may differ
            from the source of the image.
        group_ids: (P,) int64, equal for positives of each other.
        paired: (P,) bool, whether there is a positive; with ``across_ranks`` it may be on
            another rank.
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

    def rows(self, chosen: Sequence[int]) -> 'PairRecord':
        """Some of the predictions."""
        index = torch.as_tensor(chosen, dtype=torch.int64, device=self.images.device)
        return _each(lambda value: value[index], [self])

    def cpu(self) -> 'PairRecord':
        """The same, detached and on the CPU."""
        return _each(lambda value: value.detach().cpu(), [self])

    @staticmethod
    def join(records: Sequence['PairRecord']) -> 'PairRecord':
        """The predictions of several records of one head, in their order."""
        return _each(lambda *values: torch.cat(values), records)


def _each(function: Callable[..., Tensor], records: Sequence[PairRecord]) -> PairRecord:
    """The record that a function makes, field by field, of the tensors of several records."""
    made: dict[str, Any] = {}
    for name in [field.name for field in fields(PairRecord)]:
        values: list = [getattr(record, name) for record in records]
        made[name] = function(*values) if isinstance(values[0], Tensor) else values[0]
    return PairRecord(**made)
