"""How much corruptions of images cost, from performances of K kinds at S severities."""

import torch
from torch import Tensor


def mean_corrupted(performances: Tensor) -> float:
    """The mPC (Michaelis et al., 2019), the mean performance under corruption; from (K, S)."""
    return float(performances.double().mean())


def relative_corrupted(performances: Tensor, clean: float) -> float | None:
    """The rPC, the share of the clean performance that is left; None where that is 0."""
    return mean_corrupted(performances) / clean if clean else None


def mean_corruption_error(errors: Tensor, baseline: Tensor) -> float | None:
    """The mCE (Hendrycks and Dietterich, 2019), below 1 where fewer errors are made than before.

    Args:
        errors: (K, S), the share of wrong predictions.
        baseline: (K, S), that of the baseline.

    Returns:
        The mean over the kinds of their errors over those of the baseline, each summed over the
        severities; None where the baseline makes no error of one kind.

    Raises:
        ValueError: If the shapes differ.
    """
    if errors.shape != baseline.shape:
        raise ValueError(
            f'errors have shape {tuple(errors.shape)} and those of the baseline '
            f'{tuple(baseline.shape)}; expected the same kinds and severities'
        )
    own, its = errors.double().sum(dim=1), baseline.double().sum(dim=1)
    if bool(torch.any(its == 0)):
        return None
    return float((own / its).mean())
