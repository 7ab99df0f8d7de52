"""The terms of independent Bernoullis: sigmoid classifiers and masks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.consistency.common import (
    average,
    check_predictions,
    group_mean,
    group_sum,
    known_targets,
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
    target: Tensor | None = None,
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
        target: (N, C), as in :func:`categorical_consistency`.
    """
    check_predictions(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    paired = groups.paired
    if target is not None:
        paired = known_targets(target, logits, group_ids).all(dim=1)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = zero_unpaired(paired, logits) / temperature
        if target is None:
            means = _group_means(scaled, groups, detach_mean)
        else:
            means = _complements(torch.where(paired[:, None], target, 0), scaled)
        divergence = _bernoulli_divergence(scaled, means)
        if modulation is not None:
            divergence = divergence * modulation.weights(means[0])
        return average(divergence.sum(dim=1), paired, avg_factor)


def mask_consistency(
    mask_logits: Tensor,
    inside: Tensor,
    group_ids: Tensor,
    temperature: float = 1.0,
    detach_mean: bool = False,
    avg_factor: float | None = None,
    target: Tensor | None = None,
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
        target: (N, H, W), if given, the mean that each mask is compared with, NaN where it
            says nothing; see :func:`categorical_consistency`.
    """
    if mask_logits.dim() != 3 or inside.shape != mask_logits.shape:
        raise ValueError(
            f'masks have shape {tuple(mask_logits.shape)} and inside has '
            f'{tuple(inside.shape)}; expected (N, H, W) for both'
        )
    logits = mask_logits.flatten(1)
    check_predictions(logits, group_ids, avg_factor, temperature)
    groups = paired_groups(group_ids)
    shared = compared_cells(inside, group_ids, target).flatten(1)
    paired = groups.paired if target is None else shared.any(dim=1)
    with torch.autocast(logits.device.type, enabled=False):
        scaled = zero_unpaired(paired, logits) / temperature
        if target is None:
            seen = inside.flatten(1).to(scaled)
            means = _group_means(scaled, groups, detach_mean, seen)
        else:
            means = _complements(torch.where(shared, target.flatten(1), 0), scaled)
        divergence = _bernoulli_divergence(scaled, means)
        pixels = shared.sum(dim=1)
        mean = torch.where(shared, divergence, 0).sum(dim=1) / pixels.clamp(min=1)
        return average(mean, paired, avg_factor)


def compared_cells(inside: Tensor, group_ids: Tensor, target: Tensor | None = None) -> Tensor:
    """Which pixels :func:`mask_consistency` compares: another mask says something about them too.

    Args:
        inside: (N, H, W) bool, as there; so are the others.
        group_ids: (N,) integer.
        target: (N, H, W), if given.

    Returns:
        (N, H, W) bool.
    """
    if target is not None:
        return inside & known_targets(target, inside, group_ids)
    groups = paired_groups(group_ids)
    seen = inside.flatten(1).to(torch.get_default_dtype())
    counts = group_sum(seen, groups).view(inside.shape)
    return inside & (counts > 1) & groups.paired[:, None, None]


def _group_means(
    logits: Tensor, groups: PairedGroups, detach_mean: bool, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The means (N, D) of p and of 1 - p in each group, without cancellation."""
    yes, no = (
        group_mean(torch.sigmoid(signed), groups, detach_mean, weights)
        for signed in (logits, -logits)
    )
    return yes, no


def _complements(target: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Given means (N, D) of p, and those of 1 - p, as constants."""
    target = target.detach()
    return target.to(like), (1 - target).to(like)


def _bernoulli_divergence(logits: Tensor, means: tuple[Tensor, Tensor]) -> Tensor:
    """D_KL(pbar_i || p_i) of each Bernoulli: logits (N, D) to (N, D)."""
    divergence = torch.zeros_like(logits)
    for signed, mean in zip((logits, -logits), means):
        log_p = F.logsigmoid(signed)
        log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
        divergence = divergence + mean * (log_mean - log_p)
    return divergence
