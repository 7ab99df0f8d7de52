"""Samplers that keep the replicas of a source together.

The order of the samples is computed in :mod:`lt_mm.core.replicas`. A sampler does not know
the batch size, so :func:`check_train_dataloader` checks that batches hold whole groups.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import BatchSampler, DataLoader, Sampler

from lt_mm.core.replicas import (
    Layout,
    check_batch_size,
    check_num_sources,
    check_start_epoch,
    count_samples,
    count_units,
    endless_chunks,
    epoch_chunks,
)
from lt_mm.datasets.checks import check_annotated
from lt_mm.datasets.held_pipelines import hold_pipelines
from lt_mm.datasets.reporting import warn
from lt_mm.datasets.source_numbers import number_sources
from lt_mm.registry import DATA_SAMPLERS, register
from lt_mm.structures import comparing_heads
from lt_mm.structures.errors import HEAD_HINT


class _ReplicaSampler(Sampler):
    """What the samplers below share: their arguments, and which samples this rank gets."""

    _has_looked_for_head = False

    def __init__(
        self,
        dataset: Sized,
        num_repeats: int = 3,
        placement: str = 'rank',
        shuffle: bool = True,
        seed: int | None = None,
        repeat_fraction: float = 1.0,
    ) -> None:
        rank, world_size = get_dist_info()
        check_num_sources(len(dataset))
        check_annotated(dataset)
        if repeat_fraction == 0:
            raise ValueError(
                'repeat_fraction=0 repeats nothing: use a share of the samples in (0, 1], or '
                'the stock DefaultSampler'
            )
        self.layout = Layout(num_repeats, placement, rank, world_size, repeat_fraction)
        number_sources(dataset, num_repeats)
        hold_pipelines(dataset)
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed

    def _look_for_head(self) -> None:
        """Warns once if nothing compares the replicas; the model is built by the first pass."""
        if not (self._has_looked_for_head or comparing_heads.exist()):
            warn(
                f'{type(self).__name__} shows every image {self.layout.num_repeats} times in a '
                'batch, but no head of this process compares the replicas: this trains '
                f'repetition alone, not LossTransform; {HEAD_HINT}'
            )
        self._has_looked_for_head = True


@register(DATA_SAMPLERS)
class GroupedRepeatAugSampler(_ReplicaSampler):
    """Repeated augmentation in which the replicas of a source meet in a batch.

    The stream of a rank consists of groups: ``num_repeats`` consecutive copies of one
    index. Batches hold whole groups if ``num_repeats`` divides the batch size. The order is
    a function of ``(seed, epoch)``, so a resumed run goes on with the order of the epoch in
    which it was interrupted.

    Args:
        dataset: The data set.
        num_repeats: Replicas of a source, 2 or more; may be larger than the data set.
        mode: ``'full'``: every source ``num_repeats`` times an epoch. ``'v1'``: as many
            samples an epoch as without repetition, rounded up to whole groups. A pass of
            ``num_repeats`` epochs draws every source once (the rounding draws some again);
            each pass has a new permutation, so that any two sources meet sooner or later. See
            :func:`lt_mm.core.replicas.short_order`.
        placement: ``'rank'``: the replicas of a source are on one rank. ``'spread'``: they
            are on consecutive ranks, and predictions have to be gathered to be paired; the
            batches of all ranks together hold whole groups if ``num_repeats`` divides their
            total size. On one rank both are the same.
        shuffle: Whether sources are shuffled.
        seed: Must be equal on all ranks. ``None``: drawn at random, the same on all ranks.
        round_up: Whether to add groups so that all ranks get equally many samples. If not,
            ranks may differ by a group with placement ``'rank'``.
        repeat_fraction: Share of the samples that are replicas, in (0, 1]; the others are of
            sources that appear once. Every batch of a few groups or more has both kinds. Below 1
            the head needs ``allow_unrepeated=True``, and with ``mode='full'`` an epoch is shorter,
            since every source is still drawn once. Batch samplers that regroup, such as
            ``AspectRatioBatchSampler``, would cut groups apart: use ``batch_sampler=None``.
        start_epoch: In the epochs before it, counted from 0, nothing is repeated. Needs
            ``mode='v1'``, and a schedule that keeps the head's rho at 0 until then.

    Raises:
        ValueError: If the data set is empty, or if an argument is out of its range or does
            not fit another.
        DataSetError: If no image of a detection data set has an instance.
    """

    def __init__(
        self,
        dataset: Sized,
        num_repeats: int = 3,
        mode: str = 'full',
        placement: str = 'rank',
        shuffle: bool = True,
        seed: int | None = None,
        round_up: bool = True,
        repeat_fraction: float = 1.0,
        start_epoch: int = 0,
    ) -> None:
        super().__init__(dataset, num_repeats, placement, shuffle, seed, repeat_fraction)
        check_start_epoch(start_epoch, mode)
        self.mode = mode
        self.round_up = round_up
        self.start_epoch = start_epoch
        self.epoch = 0
        num_units = count_units(len(dataset), self.layout, mode, round_up)
        self.num_samples = count_samples(num_units, self.layout)

    def __iter__(self) -> Iterator[int]:
        """Iterates the indices of this rank in the current epoch."""
        self._look_for_head()
        options = self.mode, self.seed, self.epoch, self.shuffle, self.round_up, self.start_epoch
        return _integers(epoch_chunks(len(self.dataset), self.layout, *options))

    def __len__(self) -> int:
        """The number of samples of this rank in an epoch."""
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration gives.

        Args:
            epoch: Counted from 0.
        """
        self.epoch = epoch


@register(DATA_SAMPLERS)
class InfiniteGroupedRepeatAugSampler(_ReplicaSampler):
    """Endless :class:`GroupedRepeatAugSampler` for iteration-based loops.

    The stream is an endless sequence of shuffled passes over the data set; each pass has
    every source once, or as one group. There is no ``mode``: how often a source is seen
    depends on the loop. Full LossTransform needs ``num_repeats`` times the iterations of
    the stock recipe, v1 keeps their number.

    Args:
        dataset: The data set.
        num_repeats: Replicas of a source, 2 or more.
        placement: See :class:`GroupedRepeatAugSampler`.
        shuffle: Whether sources are shuffled, differently in every pass.
        seed: Must be equal on all ranks. ``None``: drawn at random, the same on all ranks.
        repeat_fraction: See :class:`GroupedRepeatAugSampler`.

    Raises:
        ValueError: If the data set is empty or an argument is out of its range.
        DataSetError: If no image of a detection data set has an instance.
    """

    _start = 0

    def __iter__(self) -> Iterator[int]:
        """Iterates the indices of this rank, from where :meth:`skip` set the beginning."""
        self._look_for_head()
        return _integers(
            endless_chunks(len(self.dataset), self.layout, self.seed, self.shuffle, self._start)
        )

    def skip(self, num_samples: int) -> None:
        """Sets where the stream begins; the loop calls it when it resumes.

        Args:
            num_samples: How many samples of this rank to leave out, from the start of training.

        Raises:
            ValueError: If ``num_samples`` is negative.
        """
        if num_samples < 0:
            raise ValueError(
                f'num_samples={num_samples} is negative: give the number of samples that '
                'were already used'
            )
        self._start = num_samples

    def __len__(self) -> int:
        """The length of the data set, as in the stock ``InfiniteSampler``."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: iteration-based loops have no epochs."""


def _integers(chunks: Iterable[np.ndarray]) -> Iterator[int]:
    # Data sets need plain ints; one list of them for a whole epoch would be huge.
    return itertools.chain.from_iterable(chunk.tolist() for chunk in chunks)


def check_train_dataloader(dataloader: DataLoader) -> None:
    """Makes sure that every batch of a loader holds whole groups of replicas.

    Loaders with other samplers pass, and so do replicas that are spread over the ranks,
    because they do not meet in the batch of one rank.

    Args:
        dataloader: A built loader; its batch sampler may be a custom one that has
            ``sampler`` and ``batch_size``, such as ``AspectRatioBatchSampler``.

    Raises:
        ValueError: If ``num_repeats`` does not divide the batch size, or if only a part of
            the samples is repeated and the batch sampler is not torch's own.
    """
    batch_sampler: Any = dataloader.batch_sampler
    sampler = getattr(batch_sampler, 'sampler', None)
    if not isinstance(sampler, _ReplicaSampler) or sampler.layout.placement != 'rank':
        return
    if sampler.layout.repeat_fraction < 1 and type(batch_sampler) is not BatchSampler:
        raise ValueError(
            f'repeat_fraction={sampler.layout.repeat_fraction} with a '
            f'{type(batch_sampler).__name__}, which regroups single samples and so cuts groups '
            'apart. Set `train_dataloader.batch_sampler` to None, or `repeat_fraction` to 1'
        )
    sizes = batch_sampler.batch_size
    # MMDetection's multi-source batch samplers have one size for each source.
    for size in sizes if isinstance(sizes, Sequence) else [sizes]:
        check_batch_size(size, sampler.layout.num_repeats)
