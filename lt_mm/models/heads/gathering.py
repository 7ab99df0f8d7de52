"""Predictions of all ranks as one batch, for replicas that lie on different ranks.

Only with ``across_ranks`` in the :class:`~lt_mm.models.heads.LossTransformHead`. All
ranks must make the same calls in the same order, whatever their batches hold; a rank
without a prediction takes part with no rows.
"""

import torch
from mmengine.dist import all_gather, get_dist_info
from torch import Tensor


class OwnRank:
    """The predictions of this rank by themselves: nothing is exchanged.

    Attributes:
        is_alone: Whether this rank's predictions are all that there are.
        is_complete: Whether all others are known.
    """

    is_alone = True
    is_complete = True

    def join(self, values: Tensor) -> Tensor:
        """(n, ...) of this rank to (N, ...) of all ranks, rank after rank."""
        return values

    def own(self, joined: Tensor) -> Tensor:
        """(N, ...) of all ranks to (n, ...) of this rank."""
        return joined

    def join_numbers(self, numbers: list[int]) -> list[int]:
        """Numbers of the host, any count of them on each rank."""
        return numbers

    def distinct(self, numbers: Tensor) -> Tensor:
        """Numbers (n,) that count on each rank from 0, made distinct between ranks."""
        return numbers

    def total(self, factor: float) -> float:
        """The sum of a number over the ranks."""
        return factor


class AllRanks(OwnRank):
    """The predictions of all ranks.

    Every rank computes the loss of all predictions and back-propagates to its own. The
    gradient of its own is multiplied by the number of ranks, because the model wrapper
    (``DistributedDataParallel``) then takes the mean over the ranks: the result is the
    gradient of the joint loss, through the mean predictions too. Nothing is exchanged
    in the backward pass.

    Args:
        count: Number of predictions of this rank, n.
        device: Where they are.
    """

    is_alone = False

    def __init__(self, count: int, device: torch.device) -> None:
        self.rank, self.world_size = get_dist_info()
        self.device = device
        self.counts = self.join_numbers_once(count)

    def join_numbers_once(self, number: int) -> list[int]:
        """One number of each rank."""
        return torch.cat(all_gather(torch.tensor([number], device=self.device))).tolist()

    def join(self, values: Tensor) -> Tensor:
        parts = _gather_rows(values, self.counts)
        parts[self.rank] = _times_gradient(values, self.world_size)
        return torch.cat([part.to(values.dtype) for part in parts])

    def own(self, joined: Tensor) -> Tensor:
        return joined.split(self.counts)[self.rank]

    def join_numbers(self, numbers: list[int]) -> list[int]:
        counts = self.join_numbers_once(len(numbers))
        parts = _gather_rows(torch.tensor(numbers, dtype=torch.int64, device=self.device), counts)
        return torch.cat(parts).tolist()

    def distinct(self, numbers: Tensor) -> Tensor:
        return numbers * self.world_size + self.rank

    def total(self, factor: float) -> float:
        return float(
            torch.cat(
                all_gather(torch.tensor([factor], dtype=torch.float64, device=self.device))
            ).sum()
        )


def exchange(across_ranks: bool, count: int, device: torch.device) -> OwnRank:
    """What joins ``count`` predictions of this rank with those of the others.

    Args:
        across_ranks: Whether to; the same on all ranks. Nothing to do on one rank.
        count: Number of predictions of this rank.
        device: Where they are.
    """
    if not across_ranks or get_dist_info()[1] == 1:
        return OwnRank()
    return AllRanks(count, device)


def _gather_rows(values: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of each rank, without gradient; booleans come as uint8."""
    sent = values.detach()
    if sent.dtype == torch.bool:
        sent = sent.to(torch.uint8)
    elif sent.dtype in (torch.float16, torch.bfloat16):  # not every backend sends them
        sent = sent.float()
    # A row at least: gloo crashes on tensors without elements.
    padded = sent.new_zeros(max(1, *counts), *sent.shape[1:])
    padded[: len(sent)] = sent
    return [part[:count] for part, count in zip(all_gather(padded), counts)]


def _times_gradient(values: Tensor, factor: int) -> Tensor:
    if not (values.requires_grad and torch.is_grad_enabled()):
        return values
    values = values.view_as(values)
    values.register_hook(lambda gradient: gradient * factor)
    return values
