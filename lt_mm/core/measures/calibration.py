"""Whether the confidence of a classifier is the share of its predictions that are right."""

import torch
from torch import Tensor

from lt_mm.core.measures.agreement import SMALLEST_PROBABILITY

# Inverse temperatures between which the calibrating one is looked for.
_COLDEST, _WARMEST = 1e2, 1e-2
_HALVINGS = 40


def calibration_error(confidences: Tensor, is_correct: Tensor, num_bins: int = 15) -> float:
    """The expected calibration error (Guo et al., 2017).

    The predictions are sorted into ``num_bins`` equal ranges of confidence, (0, 1/k], (1/k, 2/k]
    and so on; 0 lies in the first one. The error is the difference between the mean confidence
    and the share of correct predictions of a bin, averaged over the predictions.

    Args:
        confidences: (N,), the probability of the predicted class, in [0, 1]; N > 0.
        is_correct: (N,) bool.
        num_bins: k.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If there are no predictions, or a confidence is out of range.
    """
    confidences = confidences.detach().cpu().double()
    if not len(confidences) or not bool(((confidences >= 0) & (confidences <= 1)).all()):
        raise ValueError(
            f'{len(confidences)} confidences from {confidences.min() if len(confidences) else None}'
            f' to {confidences.max() if len(confidences) else None}; expected at least one, all in '
            '[0, 1]'
        )
    edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    bins = torch.bucketize(confidences, edges)
    gaps = torch.zeros(num_bins, dtype=torch.float64)
    gaps.index_add_(0, bins, confidences - is_correct.cpu().double())
    return float(gaps.abs().sum() / len(confidences))


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """The softmax of the logits over a temperature, from the probabilities of a softmax.

    The order of the classes stays as it is. A temperature above 1 makes predictions less sure.

    Args:
        probabilities: (N, C), rows sum to 1. Those below ``SMALLEST_PROBABILITY`` count as that.
        temperature: T > 0.

    Returns:
        (N, C) float64: ``p ** (1 / T)``, each row over its sum.
    """
    return (_log(probabilities) / temperature).softmax(dim=1)


def calibrating_temperature(probabilities: Tensor, labels: Tensor) -> float | None:
    """The temperature at which the labels are most likely (temperature scaling, Guo et al., 2017).

    It minimises the mean negative log-likelihood, which is convex in 1 / T. Above 1 where the
    classifier is surer than it is right, below 1 where it is less sure.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) integer, the true classes.

    Returns:
        T, to a relative error of 1e-10; None where none from 0.01 to 100 is best: without
        predictions, where all are right and no confidence is too high, or where all are as
        good as guesses.
    """
    scores = _log(probabilities)
    labels = labels.cpu().long()
    true = scores.gather(1, labels[:, None])[:, 0]

    def slope(inverse: float) -> float:
        """The derivative of the mean negative log-likelihood in 1 / T, which rises with it."""
        expected = ((scores * inverse).softmax(dim=1) * scores).sum(dim=1)
        return float((expected - true).sum())

    low, high = _WARMEST, _COLDEST
    if not len(labels) or slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low * high) ** -0.5


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.detach().cpu().double().clamp(min=SMALLEST_PROBABILITY).log()
