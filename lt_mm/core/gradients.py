"""Comparison of two gradients: does one loss work against another?"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GradientComparison(NamedTuple):
    """How one gradient compares with another.

    Attributes:
        ratio: The norm of the first divided by that of the second.
        cosine: The cosine of the angle between them; NaN if the first is zero.
    """

    ratio: float
    cosine: float


def compare_gradients(
    first: Sequence[Tensor | None], second: Sequence[Tensor | None]
) -> GradientComparison:
    """Compares the gradients of two losses, each over all tensors together.

    Args:
        first: The gradient for each of n tensors; None stands for zeros, as in
            ``torch.autograd.grad(..., allow_unused=True)``.
        second: The other gradient, for the same tensors.

    Raises:
        ValueError: If the numbers of tensors differ, or if the second gradient is zero,
            so that there is nothing to compare with.
    """
    if len(first) != len(second):
        raise ValueError(
            f'there are {len(first)} and {len(second)} gradients; expected '
            'those of two losses for the same tensors'
        )
    norm, other = _norm(first), _norm(second)
    if other == 0:
        raise ValueError(
            'the second gradient is zero; expected that of a loss that depends on the tensors'
        )
    product = sum(
        float((a.double() * b.double()).sum())
        for a, b in zip(first, second)
        if a is not None and b is not None
    )
    return GradientComparison(norm / other, product / (norm * other) if norm else float('nan'))


def _norm(gradients: Sequence[Tensor | None]) -> float:
    squares = [each.double().square().sum() for each in gradients if each is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
