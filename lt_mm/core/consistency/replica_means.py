"""The mean prediction of an instance within each replica, for terms between these means.

A head makes several predictions of one instance in one replica. Their mean stands for the
replica in the ``gt_mean`` pairing, and tells which share of the term of *all* predictions
lies between replicas: what is left if each prediction is replaced by the mean of its replica.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_mm.core.consistency.common import zero_unpaired
from lt_mm.core.pairing import UNPAIRED, compact_rows


class Cells(NamedTuple):
    """The cells of N predictions: all of one group in one replica.

    Args:
        numbers: (N,) int64 below N, the cell of each prediction.
        keep: (N,) bool, the predictions in a group; others are in no mean.
        first: (N,) bool, the first prediction of each cell that is in a group.
    """

    numbers: Tensor
    keep: Tensor
    first: Tensor

    def one_each(self, group_ids: Tensor) -> Tensor:
        """(N,) group ids, of the first prediction of each cell alone."""
        return torch.where(self.first, group_ids, UNPAIRED)

    def sum(self, values: Tensor) -> Tensor:
        """For each row of values (N, ...) the sum of its cell's rows; unpaired rows are 0."""
        kept = torch.where(self._like(values, self.keep), values, 0)
        return torch.zeros_like(kept).index_add(0, self.numbers, kept)[self.numbers]

    def any(self, values: Tensor) -> Tensor:
        """For each row of values (N, ...) bool whether a row of its cell is True."""
        return self.sum(values.long()) > 0

    def mean(self, values: Tensor) -> Tensor:
        """For each row of values (N, ...) the mean of its cell's rows; receives gradient."""
        counts = self.sum(torch.ones_like(self.numbers)).clamp(min=1)
        return self.sum(values) / self._like(values, counts)

    def mean_logits(self, logits: Tensor, sigmoid: bool, temperature: float = 1.0) -> Tensor:
        """Logits of the mean probabilities of each cell.

        Args:
            logits: (N, C); receives gradient.
            sigmoid: Whether the C classes are independent Bernoullis, or one softmax.
            temperature: Divides the logits before the activation, here and where the result
                is used.

        Returns:
            (N, C), in float32 or wider: the softmax or the sigmoids of these logits, divided
            by the temperature, are the means. Computed without leaving logarithms, so
            probabilities that a float cannot hold keep their gradient.
        """
        scaled = zero_unpaired(self.keep, logits) / temperature
        if not sigmoid:
            return temperature * self._mean_of_logarithms(scaled.log_softmax(dim=1))
        positive = self._mean_of_logarithms(F.logsigmoid(scaled))
        negative = self._mean_of_logarithms(F.logsigmoid(-scaled))
        return temperature * (positive - negative)

    def mean_mask_logits(
        self, logits: Tensor, inside: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, H, W) of the mean masks of each cell, and where one of them says something.

        Args:
            logits: (N, H, W); receives gradient.
            inside: (N, H, W) bool, whether the mask says something about a pixel.
            temperature: As in :meth:`mean_logits`.
        """
        scaled = zero_unpaired(self.keep, logits.flatten(1)).view_as(logits) / temperature
        positive = self._mean_of_logarithms(F.logsigmoid(scaled), inside)
        negative = self._mean_of_logarithms(F.logsigmoid(-scaled), inside)
        return temperature * (positive - negative), self.any(inside)

    def _mean_of_logarithms(self, log_p: Tensor, counted: Tensor | None = None) -> Tensor:
        """log(mean of p) in each cell, over the entries that are counted: rows (N, ...)."""
        weights = self.keep.new_ones(log_p.shape) if counted is None else counted
        weights = (weights & self._like(weights, self.keep)).to(log_p)
        lowest = torch.finfo(log_p.dtype).min
        numbers = self._like(log_p, self.numbers).expand_as(log_p)
        peak = torch.full_like(log_p, lowest).scatter_reduce(
            0, numbers, torch.where(weights > 0, log_p.detach(), lowest), 'amax'
        )[self.numbers]
        peak = torch.where(peak == lowest, 0, peak)
        total = self.sum(weights * (log_p - peak).clamp(max=0).exp())
        count = self.sum(weights)
        return torch.where(count > 0, (total / count.clamp(min=1)).clamp(min=_TINY).log() + peak, 0)

    @staticmethod
    def _like(values: Tensor, rows: Tensor) -> Tensor:
        """(N,) as (N, 1, ...), to be broadcast over values (N, ...)."""
        return rows.reshape(-1, *[1] * (values.dim() - 1))


# The sum of a cell holds its peak, exp(0) = 1, so this is reached only where nothing counts.
_TINY = 1e-30


def replica_cells(group_ids: Tensor, replica_ids: Tensor) -> Cells:
    """Finds the predictions of one group in one replica.

    Args:
        group_ids: (N,) integer, negative for predictions that pair with nothing.
        replica_ids: (N,) integer, the replica that each prediction was made in.
    """
    keep = group_ids >= 0
    numbers = compact_rows(torch.stack([group_ids.long(), replica_ids.long()], dim=1))
    rows = torch.arange(len(numbers), device=numbers.device)
    winner = torch.full_like(rows, len(rows)).scatter_reduce(0, numbers, rows, 'amin')
    return Cells(numbers, keep, keep & (winner[numbers] == rows))
