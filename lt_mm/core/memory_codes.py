"""How the means of a memory are stored: few bytes for each instance."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Fields = dict[str, tuple[tuple[int, ...], torch.dtype]]
# Steps of a byte, besides 0, which says that a cell is not known.
_STEPS = 254


class Code(Protocol):
    """Means of one kind, and the columns of a table that they are stored in.

    Attributes:
        shape: Shape of one mean.
        whole: Whether a mean is known as a whole or not at all; otherwise each entry.
    """

    shape: tuple[int, ...]
    whole: bool

    def fields(self) -> Fields:
        """Shape and type of what each column holds for one mean."""
        ...

    def encode(self, mean: Tensor) -> dict[str, Tensor]:
        """Means (U, ...) as columns."""
        ...

    def decode(self, columns: dict[str, Tensor], present: Tensor) -> Tensor:
        """Means (U, ...) in float64, from columns and the present predictions (U, ...)."""
        ...


class ClassCode:
    """Probabilities of classes in float16: the k largest, and the sum of the others.

    The sum is spread over the other classes in proportion to the present prediction. So it says
    how likely these are together and nothing about their shares, and no gradient pulls at these:
    with softmax, the KL of what is stored is that of k + 1 events, the last of which is 'another
    class'. It is never more than the KL of the whole mean. (Spread evenly it would pull them
    together: with 24 of 1000 classes kept, the KL of two predictions that differ in all classes
    alike becomes two to three times as large.)

    Args:
        num_classes: C.
        num_kept: k. If it is C or more, all are stored, without their indices. By default 44 of
            up to 256 classes and 24 of more: ImageNet-1K, and COCO with boxes, take less than
            150 MB so.
        sigmoid: Whether the classes are independent Bernoullis, or one softmax, whose sum is 1.
    """

    whole = True

    def __init__(
        self, num_classes: int, num_kept: int | None = None, sigmoid: bool = False
    ) -> None:
        if num_kept is None:
            num_kept = 44 if num_classes <= 2**8 else 24
        if num_classes < 1 or num_kept < 1:
            raise ValueError(
                f'num_classes is {num_classes} and num_kept is {num_kept}; expected 1 or more'
            )
        self.shape: tuple[int, ...] = (num_classes,)
        self.sigmoid = sigmoid
        self.num_kept = min(num_kept, num_classes)

    @property
    def _keeps_all(self) -> bool:
        return self.num_kept == self.shape[0]

    def fields(self) -> Fields:
        fields: Fields = {'values': ((self.num_kept,), torch.float16)}
        if not self._keeps_all:
            fields['classes'] = ((self.num_kept,), _index_type(self.shape[0]))
            if self.sigmoid:
                fields['rest'] = ((), torch.float16)
        return fields

    def encode(self, mean: Tensor) -> dict[str, Tensor]:
        # A row that is not known is NaN, and so are its values.
        if self._keeps_all:
            return {'values': mean}
        # Sorted, since equal values may be in any order with topk.
        values, classes = mean.sort(dim=1, descending=True, stable=True)
        kept = {'values': values[:, : self.num_kept], 'classes': classes[:, : self.num_kept]}
        return kept | ({'rest': values[:, self.num_kept :].sum(dim=1)} if self.sigmoid else {})

    def decode(self, columns: dict[str, Tensor], present: Tensor) -> Tensor:
        values = columns['values'].double()
        if self._keeps_all:
            return values if self.sigmoid else values / values.sum(dim=1, keepdim=True)
        classes = columns['classes'].long()
        if self.sigmoid:
            rest = columns['rest'].double()[:, None]
        else:
            rest = (1 - values.sum(dim=1, keepdim=True)).clamp(min=0)
        # As the present prediction has them; evenly if it has none.
        others = present.double().scatter(1, classes, 0)
        even = torch.ones_like(others).scatter(1, classes, 0)
        others = torch.where(others.sum(dim=1, keepdim=True) > 0, others, even)
        mean = rest * (others / others.sum(dim=1, keepdim=True))
        mean = mean.scatter(1, classes, values)
        return mean.clamp(max=1) if self.sigmoid else mean / mean.sum(dim=1, keepdim=True)


def class_probabilities(logits: Tensor, sigmoid: bool, temperature: float = 1.0) -> Tensor:
    """The probabilities (N, C) that a :class:`ClassCode` stores, in float64, of logits (N, C)."""
    scaled = logits.double() / temperature
    return scaled.sigmoid() if sigmoid else scaled.softmax(dim=1)


class BoxCode:
    """The sides of boxes, in pixels of the source, each known or not.

    In float32: a float16 beyond 512 pixels is half a pixel off, much for a small box.
    """

    shape: tuple[int, ...] = (4,)
    whole = False

    def fields(self) -> Fields:
        return {'sides': ((4,), torch.float32)}

    def encode(self, mean: Tensor) -> dict[str, Tensor]:
        return {'sides': mean}

    def decode(self, columns: dict[str, Tensor], present: Tensor) -> Tensor:
        return columns['sides'].double()


class MaskCode:
    """Probabilities of the cells of a mask as bytes, each known or not.

    A byte holds arcsin(sqrt(p)). The KL of two Bernoullis is 2 d^2 for a difference d of these,
    whatever p is, so rounding costs 2e-5 everywhere at most; and a running mean, which does not
    move if it would by less than half a step, stays nearer than 2e-4 with a momentum of 0.7.

    Args:
        size: Cells of the grid along each side.
    """

    whole = False

    def __init__(self, size: int) -> None:
        self.shape: tuple[int, ...] = (size, size)

    def fields(self) -> Fields:
        return {'cells': (self.shape, torch.uint8)}

    def encode(self, mean: Tensor) -> dict[str, Tensor]:
        angles = mean.clamp(0, 1).sqrt().asin() / (math.pi / 2)
        return {'cells': torch.where(mean.isnan(), 0, (angles * _STEPS).round() + 1)}

    def decode(self, columns: dict[str, Tensor], present: Tensor) -> Tensor:
        cells = columns['cells'].double()
        mean = ((cells - 1) / _STEPS * (math.pi / 2)).sin().square()
        return torch.where(cells == 0, math.nan, mean)


def as_stored(code: Code, means: Tensor, present: Tensor) -> Tensor:
    """What is left of means (U, ...) once they have been stored."""
    types = {name: dtype for name, (_, dtype) in code.fields().items()}
    columns = {name: each.to(types[name]) for name, each in code.encode(means).items()}
    return code.decode(columns, present)


def smallest_kept(
    means: Tensor,
    predictions: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    sigmoid: bool = False,
    tolerance: float = 0.01,
) -> int:
    """The smallest k of :class:`ClassCode` that changes the divergence by less than a share.

    Args:
        means: (N, C) means of earlier predictions.
        predictions: (N, C) the present predictions of the same instances.
        divergence: Function of two (N, C) that gives a scalar, the KL of all rows.
        sigmoid: As in :class:`ClassCode`.
        tolerance: The share. Storing all C in float16 is assumed to change it by less.
    """
    whole, low, high = divergence(means, predictions), 1, means.shape[1]
    while low < high:
        middle = (low + high) // 2
        code = ClassCode(means.shape[1], middle, sigmoid)
        change = (divergence(as_stored(code, means, predictions), predictions) - whole).abs()
        low, high = (low, middle) if change < tolerance * whole else (middle + 1, high)
    return low


def _index_type(num_classes: int) -> torch.dtype:
    if num_classes <= 2**8:
        return torch.uint8
    return torch.int16 if num_classes <= 2**15 else torch.int32
