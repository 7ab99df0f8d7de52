"""How strong a class term is beside the stock class loss of the same predictions."""

from typing import NamedTuple

import torch
from torch import Tensor

from lt_mm.core.pairing import compact_rows


class Modulation(NamedTuple):
    """How strongly a sigmoid loss pulls at a class, by the probability p that it predicts.

    The loss of a class that is there is -alpha_pos * (1 - p)^gamma_pos * log(p), and that of
    one that is not is -alpha_neg * p^gamma_neg * log(1 - p): the focal loss
    (arXiv:1708.02002) has one gamma, and alphas that sum to 1.

    Attributes:
        gamma_pos: Exponent for classes that are there, 0 or more.
        gamma_neg: Exponent for the others, 0 or more.
        alpha_pos: Factor for classes that are there.
        alpha_neg: Factor for the others.
    """

    gamma_pos: float
    gamma_neg: float
    alpha_pos: float = 1.0
    alpha_neg: float = 1.0

    def weights(self, mean: Tensor) -> Tensor:
        """The gradient of the loss relative to that of the cross entropy, expected under pbar.

        With f(q, gamma) = (1 - q)^gamma * (1 - gamma * q * log(q) / (1 - q)), which is the
        derivative of -(1 - q)^gamma * log(q) by the logit over that of -log(q)::

            w = pbar * alpha_pos * f(pbar, gamma_pos)
                + (1 - pbar) * alpha_neg * f(1 - pbar, gamma_neg)

        Args:
            mean: pbar, any shape; no gradient flows.
        """
        mean = mean.detach()
        there = self.alpha_pos * _relative_gradient(mean, self.gamma_pos)
        absent = self.alpha_neg * _relative_gradient(1 - mean, self.gamma_neg)
        return mean * there + (1 - mean) * absent


def _relative_gradient(q: Tensor, gamma: float) -> Tensor:
    """f(q, gamma) above; 0 and 1 count as the numbers next to them."""
    eps = torch.finfo(q.dtype).eps
    q = q.clamp(eps, 1 - eps)
    return (1 - q) ** gamma * (1 - gamma * q * q.log() / (1 - q))


def positives_each(instance_ids: Tensor, replica_ids: Tensor, paired: Tensor) -> Tensor:
    """For how many positives of the stock loss each paired prediction stands, on average.

    A prediction that is compared stands for all positives of its annotation in its replica,
    each of which has a place in the stock loss.

    Args:
        instance_ids: (N, k) integer, the source annotation of each positive.
        replica_ids: (N,) integer, the replica that each was made in.
        paired: (N,) bool, the positives that are compared.

    Returns:
        Scalar, 1 or more; 0 if nothing is paired.
    """
    cells = compact_rows(torch.cat([instance_ids, replica_ids[:, None]], dim=1).long())
    compared = torch.zeros_like(cells).index_add(0, cells, paired.long())
    return (compared[cells] > 0).sum() / paired.sum().clamp(min=1)
