"""Samplers that keep the replicas of a source together.

The order of the samples is computed in :mod:`lt_mm.core.sampling.replicas`. A sampler does not know
the batch size, so :func:`check_train_dataloader` checks that batches hold whole groups.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import BatchSampler, DataLoader, Sampler

from lt_mm.core.sampling.partly_labelled import PartlyLabelled, check_mixed_batch_size
from lt_mm.core.sampling.replicas import (
    Layout,
    check_batch_size,
    check_num_sources,
    check_start_epoch,
    count_samples,
    count_units,
    endless_chunks,
    epoch_chunks,
)
from lt_mm.datasets.checks import check_annotated, check_annotation_files
from lt_mm.datasets.held_pipelines import hold_pipelines
from lt_mm.datasets.reporting import warn
from lt_mm.datasets.source_numbers import number_sources, set_num_replicas
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
        unlabelled_share: float | None = None,
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
        self.unlabelled_share = unlabelled_share
        self.partly_labelled: PartlyLabelled | None = None
        if unlabelled_share is not None:
            self.partly_labelled = self._order_of_parts(unlabelled_share)
        elif num_weak_in(dataset):
            _check_weak_groups(dataset, self.layout)

    def _order_of_parts(self, share: float) -> PartlyLabelled:
        dataset: Any = self.dataset
        if not hasattr(dataset, 'unlabelled'):
            raise ValueError(
                f'unlabelled_share is set, but {type(dataset).__name__} does not tell which images '
                'are unlabelled: use train_dataloader.dataset = dict('
                "type='lt_mm.LabelledAndUnlabelled', labelled=<stock data set>, "
                'unlabelled=<stock data set, or a folder>)'
            )
        layout = self.layout
        if layout.placement != 'rank' or layout.repeat_fraction != 1:
            raise ValueError(
                f'unlabelled_share does not go with placement={layout.placement!r} and '
                f'repeat_fraction={layout.repeat_fraction}: leave both out of the sampler, since '
                'labelled images are shown once'
            )
        set_num_replicas(dataset.labelled, 1)
        return PartlyLabelled(
            len(dataset.labelled),
            len(dataset.unlabelled),
            layout.num_repeats,
            share,
            self.seed,
            self.shuffle,
            layout.rank,
            layout.world_size,
            weak=dataset.num_weak > 0,
        )

    def _indices(self, chunks: Iterable[np.ndarray], place: int = 0) -> Iterator[int]:
        """The indices of this rank; the first one of a group is that of a weak copy, if any.

        Args:
            chunks: Of sources.
            place: How many samples came before.
        """
        indices = _integers(chunks)
        num_weak = num_weak_in(self.dataset)
        if self.partly_labelled is not None or not num_weak:
            return indices
        return (
            # Of LabelledAndUnlabelled, the first images have none.
            index + num_weak
            if number % self.layout.num_repeats == 0 and index >= len(self.dataset) - num_weak
            else index
            for number, index in enumerate(indices, place)
        )

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
        num_repeats: Replicas of a source, 2 or more; may be larger than the data set. A batch
            holds ``batch_size / num_repeats`` sources.
        mode: ``'full'``: every source ``num_repeats`` times an epoch, which takes ``num_repeats``
            times the steps. ``'v1'``: as many samples an epoch as without repetition, rounded up
            to whole groups. A pass of ``num_repeats`` epochs draws every source once (the
            rounding draws some again); each pass has a new permutation, so that any two sources
            meet sooner or later. See :func:`lt_mm.core.sampling.replicas.short_order`.
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
        unlabelled_share: For a :class:`~lt_mm.datasets.LabelledAndUnlabelled` data set, the share
            of every batch that is unlabelled, in (0, 1). Labelled images are then shown once, and
            unlabelled ones in groups; an epoch is a pass over the labelled images. None: both
            parts are repeated as one data set.

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
        unlabelled_share: float | None = None,
    ) -> None:
        super().__init__(
            dataset, num_repeats, placement, shuffle, seed, repeat_fraction, unlabelled_share
        )
        check_start_epoch(start_epoch, mode)
        self.mode = mode
        self.round_up = round_up
        self.start_epoch = start_epoch
        self.epoch = 0
        _check_mode(mode, start_epoch, unlabelled_share, num_weak_in(dataset))
        if self.partly_labelled is not None:
            self.num_samples = len(self.partly_labelled)
            return
        num_units = count_units(len(dataset), self.layout, mode, round_up)
        self.num_samples = count_samples(num_units, self.layout)

    def __iter__(self) -> Iterator[int]:
        """Iterates the indices of this rank in the current epoch."""
        self._look_for_head()
        if self.partly_labelled is not None:
            return _integers(self.partly_labelled.chunks(self.epoch))
        options = self.mode, self.seed, self.epoch, self.shuffle, self.round_up, self.start_epoch
        return self._indices(epoch_chunks(len(self.dataset), self.layout, *options))

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
        unlabelled_share: Likewise.

    Raises:
        ValueError: If the data set is empty or an argument is out of its range.
        DataSetError: If no image of a detection data set has an instance.
    """

    _start = 0

    def __iter__(self) -> Iterator[int]:
        """Iterates the indices of this rank, from where :meth:`skip` set the beginning."""
        self._look_for_head()
        if self.partly_labelled is not None:
            return _integers(self.partly_labelled.endless_chunks(self._start))
        options = self.seed, self.shuffle, self._start
        chunks = endless_chunks(len(self.dataset), self.layout, *options)
        return self._indices(chunks, self._start)

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


def num_weak_in(dataset: Any) -> int:
    """How many of the last images of a data set have a weak copy, at indices past its length."""
    return getattr(dataset, 'num_weak', 0)


def repeats_sources(dataloader: DataLoader) -> bool:
    """Whether a loader has a sampler of this package."""
    return isinstance(getattr(dataloader.batch_sampler, 'sampler', None), _ReplicaSampler)


def _check_weak_groups(dataset: Any, layout: Layout) -> None:
    if layout.placement != 'rank' or layout.repeat_fraction != 1:
        raise ValueError(
            f'placement={layout.placement!r}, repeat_fraction={layout.repeat_fraction} do not go '
            f"with the weak copies of {type(dataset).__name__}: expected placement='rank' and "
            'repeat_fraction=1, so that the first copy in each group is the weak one'
        )


def _check_mode(mode: str, start_epoch: int, unlabelled_share: float | None, num_weak: int) -> None:
    if unlabelled_share is not None and (mode, start_epoch) != ('full', 0):
        raise ValueError(
            f'unlabelled_share does not go with mode={mode!r} and start_epoch={start_epoch}: leave '
            'both out of the sampler, since labelled images are shown once'
        )
    if num_weak and start_epoch:
        raise ValueError(
            f'start_epoch={start_epoch} does not go with weak copies, of which there is one in '
            'each group: leave it out of the sampler'
        )


def _integers(chunks: Iterable[np.ndarray]) -> Iterator[int]:
    # Data sets need plain ints; one list of them for a whole epoch would be huge.
    return itertools.chain.from_iterable(chunk.tolist() for chunk in chunks)


def check_train_dataloader(dataloader: DataLoader) -> None:
    """Makes sure that every batch of a loader holds whole groups of replicas.

    Loaders with other samplers pass, after a check of their data set, and so do replicas that
    are spread over the ranks, because they do not meet in the batch of one rank.

    Args:
        dataloader: A built loader; its batch sampler may be a custom one that has
            ``sampler`` and ``batch_size``, such as ``AspectRatioBatchSampler``.

    Raises:
        ValueError: If ``num_repeats`` does not divide the batch size, or if only a part of
            the samples is repeated and the batch sampler is not torch's own, or if batches would
            differ in their share of unlabelled samples.
        DataSetError: See :func:`lt_mm.datasets.checks.check_annotation_files`.
    """
    batch_sampler: Any = dataloader.batch_sampler
    sampler = getattr(batch_sampler, 'sampler', None)
    if not isinstance(sampler, _ReplicaSampler):  # which have done so when they were built
        check_annotation_files(dataloader.dataset)
    if not isinstance(sampler, _ReplicaSampler) or sampler.layout.placement != 'rank':
        return
    share = getattr(sampler, 'unlabelled_share', None)
    is_partial = sampler.layout.repeat_fraction < 1 or share is not None
    if is_partial and type(batch_sampler) is not BatchSampler:
        raise ValueError(
            f'repeat_fraction={sampler.layout.repeat_fraction} and unlabelled_share={share} with a '
            f'{type(batch_sampler).__name__}, which regroups single samples and so cuts groups '
            'apart. Set `train_dataloader.batch_sampler` to None, or `repeat_fraction` to 1 and '
            '`unlabelled_share` to None'
        )
    sizes = batch_sampler.batch_size
    # MMDetection's multi-source batch samplers have one size for each source.
    for size in sizes if isinstance(sizes, Sequence) else [sizes]:
        check_batch_size(size, sampler.layout.num_repeats)
        if share is not None:
            check_mixed_batch_size(size, sampler.layout.num_repeats, share)
