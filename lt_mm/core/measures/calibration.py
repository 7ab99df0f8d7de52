"""Whether the confidence of a classifier is the share of its predictions that are right."""

import torch
from torch import Tensor


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
