"""The prediction for one weak copy as the target of the other copies.

Instead of the mean of all replicas, the copies of a source are compared with the prediction for
the one that was augmented weakly, as in FixMatch and UDA. It counts as constant.
"""

import torch
from torch import Tensor

from lt_mm.core.memory_codes import class_probabilities
from lt_mm.core.pairing import compact_ids


def weak_targets(values: Tensor, group_ids: Tensor, is_weak: Tensor) -> Tensor:
    """What each prediction is compared with: the values of the weak one of its group.

    Args:
        values: (N, ...), NaN where there is nothing to compare with.
        group_ids: (N,) integer, equal for positives of each other, negative for the unpaired.
        is_weak: (N,) bool; at most one of a group.

    Returns:
        (N, ...) values, without gradient. NaN for the weak ones, for the unpaired, and in groups
        without a weak one.
    """
    table = torch.full_like(values, torch.nan)
    numbers = compact_ids(group_ids)
    # Of those that are not weak, nothing is written: their place is that of a last, extra row.
    places = torch.where(is_weak, numbers, len(values))
    table = torch.cat([table, table[:1]]).index_copy_(0, places, values.detach())
    compared = ~is_weak & (group_ids >= 0)
    return torch.where(_per_row(compared, values), table[numbers], torch.nan)


def confident_probabilities(
    logits: Tensor, sigmoid: bool, temperature: float, threshold: float
) -> Tensor:
    """Class probabilities of predictions that are confident: (N, C), NaN for the others.

    Args:
        logits: (N, C); no gradient flows.
        sigmoid: Whether the classes are independent Bernoullis; otherwise softmax.
        temperature: Divides the logits; below 1 the probabilities are sharper.
        threshold: The smallest probability, at temperature 1, of the most probable class.
    """
    confidence = class_probabilities(logits, sigmoid, 1.0).amax(dim=1)
    sharpened = class_probabilities(logits, sigmoid, temperature)
    return torch.where((confidence >= threshold)[:, None], sharpened, torch.nan)


def _per_row(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (like.dim() - 1))
