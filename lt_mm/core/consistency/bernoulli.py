"""The terms of independent Bernoullis: sigmoid classifiers and masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.consistency.common import (
    average,
    check_predictions,
    group_mean,
    group_sum,
    zero_unpaired,
)
from lt_mm.core.consistency.strength import Modulation
from lt_mm.core.pairing import PairedGroups, paired_groups


def bernoulli_consistency(
    logits: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
    modulation: Modulation | None = None,
) -> Tensor:
    """Term for sigmoid classifiers: the sum of the Bernoulli KLs of all classes.

    Args:
        logits: (N, C), unnormalised, one independent Bernoulli each; receives gradient.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        temperature: Divides the logits before the sigmoid.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
        modulation: If given, the KL of each class is weighted by its ``weights`` at the
            mean, which count as constant: the gradient is still 0 where predictions agree.
    """
    check_predictions(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = zero_unpaired(groups.paired, logits) / temperature
        divergence = _bernoulli_divergence(scaled, groups, detach_mean)
        if modulation is not None:
            mean = group_mean(scaled.sigmoid(), groups, detach=True)
            divergence = divergence * modulation.weights(mean)
        return average(divergence.sum(dim=1), groups.paired, avg_factor)


def mask_consistency(
    mask_logits: Tensor,
    inside: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
) -> Tensor:
    """Term for masks: the mean Bernoulli KL over the pixels of a canonical grid.

    A pixel counts for the masks of a group that say something about it, if there are at
    least two of them. The mean is taken pixel by pixel, over these masks.

    Args:
        mask_logits: (N, H, W), unnormalised, on the same grid of the source instance for all masks
            of a group (:func:`lt_mm.core.geometry.masks_to_source`); receives gradient.
        inside: (N, H, W) bool, whether the mask says something about a pixel.
        group_ids: (N,) integer, as in :func:`categorical_consistency`.
        temperature: Divides the logits before the sigmoid.
        detach_mean: Whether the mean counts as constant in the gradient.
        avg_factor: n of the formula; N unless given.
    """
    if mask_logits.dim() != 3 or inside.shape != mask_logits.shape:
        raise ValueError(
            f'masks have shape {tuple(mask_logits.shape)} and inside has '
            f'{tuple(inside.shape)}; expected (N, H, W) for both'
        )
    logits, inside = mask_logits.flatten(1), inside.flatten(1)
    check_predictions(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = zero_unpaired(groups.paired, logits) / temperature
        seen = inside.to(scaled)
        shared = (seen > 0) & (group_sum(seen, groups) > 1)
        divergence = _bernoulli_divergence(scaled, groups, detach_mean, weights=seen)
        pixels = shared.sum(dim=1)
        mean = torch.where(shared, divergence, 0).sum(dim=1) / pixels.clamp(min=1)
        return average(mean, groups.paired, avg_factor)


def _bernoulli_divergence(
    logits: Tensor, groups: PairedGroups, detach_mean: bool, weights: Tensor | None = None
) -> Tensor:
    """D_KL(pbar_i || p_i) of each Bernoulli: logits (N, D) to (N, D)."""
    divergence = torch.zeros_like(logits)
    for signed in (logits, -logits):  # p and 1 - p, without cancellation
        log_p = F.logsigmoid(signed)
        mean = group_mean(torch.sigmoid(signed), groups, detach_mean, weights)
        log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        divergence = divergence + mean * (log_mean - log_p)
    return divergence
