"""Samplers that go on in the middle of a pass, in another layout than it began with."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import Sampler

from lt_mm.core.sampling.remaining import (
    Rest,
    deal_groups,
    deal_singles,
    groups_of_rest,
    merge_streams,
    rest_of_pass,
    sources_shown,
)
from lt_mm.core.sampling.replicas import Layout, endless_chunks
from lt_mm.datasets.samplers.repeat_aug import (
    GroupedRepeatAugSampler,
    InfiniteGroupedRepeatAugSampler,
    num_weak_in,
)
from lt_mm.models.mixins import InstanceMixin, mix_in, stock_class

# Classes that derive from these may draw in another way.
_OF_EPOCHS = (DefaultSampler, GroupedRepeatAugSampler)
ENDLESS = (InfiniteSampler, InfiniteGroupedRepeatAugSampler)


class ContinuedSampler(Sampler, InstanceMixin):
    """Mixin for a sampler of epochs, which deals out what is left of a pass.

    Attributes:
        rest: What was left when the run was resumed.
    """

    prefix = 'Continued'
    rest: Rest
    _dealt: tuple[tuple[int, int], np.ndarray | None] | None = None

    def __iter__(self) -> Iterator[int]:
        samples = self._samples()
        return super().__iter__() if samples is None else iter(samples.tolist())

    def __len__(self) -> int:
        samples = self._samples()
        return super().__len__() if samples is None else len(samples)

    def goes_on(self) -> bool:
        """Whether the present epoch belongs to the pass that goes on."""
        return self.rest.epoch <= self.epoch < pass_of(self, self.rest.epoch).stop

    def _samples(self) -> np.ndarray | None:
        key = self.epoch, _with_ranks(self).rank
        if self._dealt is None or self._dealt[0] != key:
            self._dealt = key, self._deal() if self.goes_on() else None
        return self._dealt[1]

    def _deal(self) -> np.ndarray | None:
        if not hasattr(self, 'layout'):
            return deal_singles(self.rest.order, self.rank, self.world_size, self.round_up)
        layout = _layout_in_epoch(self)
        natural = None
        if len(pass_of(self, self.epoch)) > 1:
            natural = merge_streams([_drawn(self, self.epoch, r) for r in _ranks(self)])
        order = groups_of_rest(self.rest, self.epoch, layout, self.round_up, natural)
        return None if order is None else deal_groups(order, layout, self.round_up)


class ContinuedStream(Sampler, InstanceMixin):
    """Mixin for an endless sampler, which begins at any of its sources.

    Attributes:
        first_source: How many sources of the sequence of all ranks are left out.
    """

    prefix = 'Continued'
    first_source: int

    def __iter__(self) -> Iterator[int]:
        if hasattr(self, 'layout'):
            chunks = endless_chunks(
                len(self.dataset),
                self.layout,
                self.seed,
                self.shuffle,
                first_source=self.first_source,
            )
            return itertools.chain.from_iterable(chunk.tolist() for chunk in chunks)
        first = self.first_source + self.rank
        return itertools.islice(self._infinite_indices(), first, None, self.world_size)


def go_on_with(sampler: Any, rest: Rest) -> None:
    """Lets a sampler of epochs go on with what is left of a pass."""
    if not isinstance(sampler, ContinuedSampler):
        mix_in(ContinuedSampler, sampler)
    sampler.rest, sampler._dealt = rest, None


def begin_at(sampler: Any, first_source: int) -> None:
    """Lets an endless sampler begin at a source of its sequence, counted from 0."""
    if not isinstance(sampler, ContinuedStream):
        mix_in(ContinuedStream, sampler)
    sampler.first_source = first_source


def is_of_epochs(sampler: Any) -> bool:
    """Whether it is known in which order a sampler shows the sources in an epoch."""
    return stock_class(sampler) in _OF_EPOCHS and not _shows_other_indices(sampler)


def is_endless(sampler: Any) -> bool:
    """Whether it is known in which order a sampler shows the sources without end."""
    return stock_class(sampler) in ENDLESS and not _shows_other_indices(sampler)


def _shows_other_indices(sampler: Any) -> bool:
    """Whether there is more to the order than a permutation: parts of a data set, weak copies."""
    is_mixed = getattr(sampler, 'partly_labelled', None) is not None
    return is_mixed or num_weak_in(getattr(sampler, 'dataset', None)) > 0


def pass_of(sampler: Any, epoch: int) -> range:
    """The epochs that together show every source once."""
    if getattr(sampler, 'mode', None) != 'v1' or epoch < sampler.start_epoch:
        return range(epoch, epoch + 1)
    num_epochs = sampler.layout.num_repeats
    start = epoch - (epoch - sampler.start_epoch) % num_epochs
    return range(start, start + num_epochs)


def rest_after(batches: Any, sampler: Any, epoch: int, num_batches: int) -> Rest | None:
    """What is left of a pass after some batches of an epoch, on all ranks.

    Args:
        batches: The batch sampler as it is before an epoch; left as it is.
        sampler: The sampler in it, of which :func:`is_of_epochs` is true; left as it is.
        epoch: The present epoch.
        num_batches: Batches that each rank has trained on in this epoch.

    Returns:
        None at the start of a pass.
    """
    epochs = pass_of(sampler, epoch)
    if isinstance(sampler, ContinuedSampler) and sampler.rest.epoch in epochs:
        whole = sampler.rest.order
        epochs = range(sampler.rest.epoch, epochs.stop)
    elif epoch == epochs.start and not num_batches:
        return None
    else:
        whole = np.concatenate([_sources_in(sampler, each) for each in epochs])
    shown = [_sources_in(sampler, each) for each in range(epochs.start, epoch)]
    for rank in _ranks(sampler):
        own = _copy_of(batches, sampler, _on_rank(sampler, rank, epoch))
        drawn = itertools.islice(own, num_batches)
        shown.append(np.fromiter(itertools.chain.from_iterable(drawn), dtype=np.int64))
    return rest_of_pass(epoch, whole, _sources_in(sampler, epoch), shown)


def fresh_copy(batches: Any) -> Any:
    """A copy of a batch sampler that is not used up; it shares the sampler and the data."""
    return _copy_of(batches, batches.sampler, batches.sampler)


def next_source(sampler: Any, first_source: int, num_samples: int) -> int:
    """The position of an endless sampler after some samples of each rank."""
    if isinstance(sampler, InfiniteGroupedRepeatAugSampler):
        return first_source + sources_shown(num_samples, sampler.layout)
    return first_source + num_samples * sampler.world_size


def _sources_in(sampler: Any, epoch: int) -> np.ndarray:
    """All sources of an epoch, in the order in which the ranks show them."""
    ranks = (_on_rank(sampler, rank, epoch) for rank in _ranks(sampler))
    return merge_streams([np.fromiter(each, dtype=np.int64) for each in ranks])


def _drawn(sampler: Any, epoch: int, rank: int) -> np.ndarray:
    """The samples of a rank in an epoch as the stock sampler gives them."""
    own: Any = super(ContinuedSampler, _on_rank(sampler, rank, epoch))
    return np.fromiter(own.__iter__(), dtype=np.int64)


def _ranks(sampler: Any) -> range:
    return range(_with_ranks(sampler).world_size)


def _with_ranks(sampler: Any) -> Any:
    """What knows the rank: the layout of a sampler of this package, or a stock sampler."""
    return getattr(sampler, 'layout', sampler)


def _on_rank(sampler: Any, rank: int, epoch: int) -> Any:
    """The sampler of another rank, in an epoch."""
    other = copy.copy(sampler)
    if hasattr(other, 'layout'):
        other.layout = dataclasses.replace(other.layout, rank=rank)
    else:
        other.rank = rank
    other.set_epoch(epoch)
    return other


def _layout_in_epoch(sampler: Any) -> Layout:
    if sampler.epoch < sampler.start_epoch:
        return dataclasses.replace(sampler.layout, repeat_fraction=0.0)
    return sampler.layout


def _copy_of(batches: Any, sampler: Any, other: Any) -> Any:
    """A copy of a batch sampler with another sampler, and with buffers of its own."""
    shared = sampler.dataset, getattr(batches, 'loop', None)
    memo: dict[int, Any] = {id(each): each for each in shared}
    return copy.deepcopy(batches, {**memo, id(sampler): other})
