"""What the terms share: checks of arguments, means over groups, the average."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.pairing import PairedGroups

# A prediction beyond this counts as this, without gradient, so that sums stay finite.
LARGEST = 1e30
# A log-probability below this counts as this, as in torch's binary_cross_entropy: the KL of an
# outcome that one prediction rules out (a logit of -inf) would be infinite. In nats.
LOWEST_LOG = -100.0


def group_mean(
    values: Tensor, groups: PairedGroups, detach: bool, weights: Tensor | None = None
) -> Tensor:
    """pbar: for each row of values (N, D) the mean of its group's rows, (N, D).

    With weights (N, D) of 0 and 1, the mean of the entries with weight 1; 0 where there is none.
    """
    if detach:
        values = values.detach()
    if weights is None:
        return group_sum(values, groups) / groups.sizes[groups.numbers, None]
    return group_sum(values * weights, groups) / group_sum(weights, groups).clamp(min=1)


def group_sum(values: Tensor, groups: PairedGroups) -> Tensor:
    """For each row of values (N, D) the sum of its group's rows, (N, D)."""
    sums = values.new_zeros(len(groups.sizes), values.shape[1])
    return sums.index_add(0, groups.numbers, values)[groups.numbers]


def logits_of(probabilities: Tensor) -> Tensor:
    """Logits of probabilities, in float32 or wider; 0 and 1 count as the numbers next to them."""
    if probabilities.dtype != torch.float64:
        probabilities = probabilities.float()
    eps = torch.finfo(probabilities.dtype).eps
    probabilities = probabilities.clamp(eps, 1 - eps)
    return probabilities.log() - (-probabilities).log1p()


def logits_of_both(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Logits of the products of two probabilities that are given by their logits.

    As ``log(p q / (1 - p q))``, without taking the difference of nearly equal numbers.

    Args:
        logits_a: (N, ...); receives gradient.
        logits_b: Likewise.
    """
    return logits_a + logits_b - F.softplus(torch.logaddexp(logits_a, logits_b))


def average(divergence: Tensor, paired: Tensor, avg_factor: float | None) -> Tensor:
    """The sum over the paired of (N,) or (N, D) divergences, divided by n of the formula."""
    if avg_factor is None:
        avg_factor = max(len(divergence), 1)
    return torch.where(paired, divergence, 0).sum() / avg_factor


def known_targets(target: Tensor, values: Tensor, group_ids: Tensor) -> Tensor:
    """Where a target says what to compare with, (N, ...) bool.

    Args:
        target: (N, ...), NaN where there is nothing to compare with.
        values: (N, ...), the predictions.
        group_ids: (N,) integer; negative for predictions that are not compared.
    """
    if target.shape != values.shape:
        raise ValueError(
            f'the target has shape {tuple(target.shape)} and the predictions have '
            f'{tuple(values.shape)}; expected the same, one mean for each prediction'
        )
    return ~target.isnan() & (group_ids >= 0).view(-1, *[1] * (target.dim() - 1))


def floored(log_p: Tensor) -> Tensor:
    """Log-probabilities (finite) of ``LOWEST_LOG`` at least; the gradient stays that of log_p."""
    value = log_p.detach()
    return value.clamp(min=LOWEST_LOG) + (log_p - value)


def non_negative(term: Tensor) -> Tensor:
    """A term that rounding made slightly negative, or -0, becomes 0; its gradient stays."""
    value = term.detach()
    return term + (value.clamp(min=0) - value)


def zero_unpaired(paired: Tensor, predictions: Tensor) -> Tensor:
    """Predictions (N, D) in float32 at least, with zeros for the unpaired.

    Half precision loses small divergences. An unpaired prediction may be anything, such
    as a box that no matrix brings back. If it stayed, its overflow would be 0 in the term
    but 0 * inf, which is NaN, in the gradient.
    """
    return zero_unless(paired[:, None], predictions)


def zero_unless(compared: Tensor, predictions: Tensor) -> Tensor:
    """:func:`zero_unpaired` with an entry for each number that is compared or not."""
    wide = predictions if predictions.dtype == torch.float64 else predictions.float()
    return torch.where(compared, wide, 0).clamp(-LARGEST, LARGEST)


def check_predictions(
    predictions: Tensor, group_ids: Tensor, avg_factor: float | None, temperature: float = 1.0
) -> None:
    """Raises ``ValueError`` for arguments that no term can use."""
    if predictions.dim() != 2 or group_ids.shape != predictions.shape[:1]:
        raise ValueError(
            f'predictions have shape {tuple(predictions.shape)} and group ids '
            f'{tuple(group_ids.shape)}; expected (N, C) and (N,)'
        )
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f'group ids are {group_ids.dtype}; expected integers')
    if not temperature > 0:
        raise ValueError(f'temperature is {temperature}; expected a positive number')
    if avg_factor is not None and not avg_factor > 0:
        raise ValueError(
            f'avg_factor is {avg_factor}; expected a positive number, such as '
            'max(number of predictions, 1)'
        )
