"""Order of the samples under repeated augmentation: groups, ranks, epochs.

A *source* is an item of the data set. A *unit* is ``m`` consecutive samples: a
*group*, the ``m`` replicas of one source, or (if only a part of the samples is
repeated) ``m`` different sources. An *order* is an array of the sources of an epoch.
Which of them a sample shows follows from its position (:class:`Layout`), so the only
array as long as the epoch is the order, one small integer a source (in mode ``'v1'``
it is cut from a permutation of all sources). Samples are looked up in chunks.

Randomness is a function of ``(seed, epoch)`` alone: any epoch can be built without
those before it, and every rank builds the same order.
"""

import bisect
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

MODES = ('full', 'v1')
PLACEMENTS = ('rank', 'spread')

_CHUNK = 8192  # samples that are looked up at once

# Keys that keep the two kinds of shuffles of one seed independent.
_EPOCH_KEY = 0
_PASS_KEY = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which samples of a global sequence are replicas, and which rank gets them.

    Args:
        num_repeats: Samples in a unit and replicas in a group, ``m``.
        placement: ``'rank'`` gives whole units to the ranks in turn, so that the replicas of a
            source are consecutive in the stream of one rank. ``'spread'`` gives single samples to
            the ranks in turn (DeiT's layout), so that the replicas of a source lie on ``m`` ranks,
            or on all ranks if there are fewer. On one rank both are the same.
        rank: This rank, counted from 0.
        world_size: Number of ranks.
        repeat_fraction: Share of the units that are groups, in [0, 1], rounded to a
            fraction with a denominator of at most 1000. Groups are spaced evenly, with
            placement ``'rank'`` in the same way on all ranks.

    Raises:
        ValueError: If an argument is out of its range.
    """

    num_repeats: int
    placement: str = 'rank'
    rank: int = 0
    world_size: int = 1
    repeat_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.num_repeats, int):
            raise ValueError(
                f'num_repeats={self.num_repeats!r} is not an int: '
                'use a whole number of replicas, 2 or more'
            )
        if self.num_repeats < 2:
            raise ValueError(
                f'num_repeats={self.num_repeats} makes no replicas to pair: '
                'use 2 or more, or the stock DefaultSampler'
            )
        _check_choice('placement', self.placement, PLACEMENTS)
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f'rank={self.rank} is not in 0 ... world_size - 1 (world_size={self.world_size})'
            )
        if not 0 <= self.repeat_fraction <= 1:
            raise ValueError(
                f'repeat_fraction={self.repeat_fraction} is not a '
                'share of the samples: use a number in (0, 1]'
            )

    def are_groups(self, units: np.ndarray) -> np.ndarray:
        """Which units of the global sequence are groups: integers to bools."""
        rows = units // self._row
        return self._groups_before(rows + 1) > self._groups_before(rows)

    def sources_before(self, units: np.ndarray) -> np.ndarray:
        """How many sources come before units of the global sequence: integers to integers."""
        rows, rest = units // self._row, units % self._row
        groups = self._groups_before(rows)
        sources = groups + self.num_repeats * (rows - groups)
        in_unit = np.where(self.are_groups(units), 1, self.num_repeats)
        return self._row * sources + rest * in_unit

    @property
    def _row(self) -> int:
        """How many consecutive units are of one kind: one for each rank that gets whole ones."""
        return self.world_size if self.placement == 'rank' else 1

    def _groups_before(self, rows: np.ndarray) -> np.ndarray:
        share = Fraction(self.repeat_fraction).limit_denominator(1000)
        return rows * share.numerator // share.denominator


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{name}={value!r} is unknown: use one of {", ".join(map(repr, choices))}')


def check_num_sources(num_sources: int) -> None:
    """Raises ``ValueError`` for a data set without items."""
    if num_sources < 1:
        raise ValueError(
            'the data set is empty: there is nothing to repeat; '
            'check its annotation file and filter_cfg'
        )


def check_batch_size(batch_size: int, num_repeats: int) -> None:
    """Makes sure that batches of a stream of whole groups hold whole groups.

    Args:
        batch_size: Samples in a batch of one rank.
        num_repeats: Replicas in a group.

    Raises:
        ValueError: If ``num_repeats`` does not divide ``batch_size``.
    """
    if batch_size % num_repeats == 0:
        return
    below = batch_size // num_repeats * num_repeats
    fitting = [size for size in (below, below + num_repeats) if size > 0]
    raise ValueError(
        f'batch_size={batch_size} is not a multiple of num_repeats={num_repeats}: batches would '
        'cut groups of replicas apart, and the cut-off replicas would pair with nothing. Set '
        f'`train_dataloader.batch_size` to {" or ".join(map(str, fitting))}, or '
        f'`train_dataloader.sampler.num_repeats` to a divisor of {batch_size}'
    )


def holds_whole_groups(source_ids: Sequence[int], num_repeats: int | None, partly: bool) -> bool:
    """Whether the groups of a batch are whole, and there is one.

    Args:
        source_ids: The source of each sample, in the order of the batch.
        num_repeats: Replicas in a group; None if not known, which leaves more undetected: groups
            are then whole if all have the same size, or with ``partly`` any size above 1.
        partly: Whether units of different sources may lie between groups. A source may be in
            two units where one pass over the data ends in the batch and the next begins, so a
            single batch of which this function says no proves nothing.

    Returns:
        False for a batch without any replica; True for an empty one.
    """
    sizes = Counter(source_ids)
    largest = max(sizes.values(), default=num_repeats or 2)
    if not partly:
        whole = num_repeats or largest
        return whole > 1 and all(size % whole == 0 for size in sizes.values())
    if num_repeats is None or largest < num_repeats:
        return num_repeats is None and largest > 1
    starts = range(0, len(source_ids), num_repeats)
    units = [source_ids[start : start + num_repeats] for start in starts]
    return all(len(set(unit)) == 1 or all(sizes[source] == 1 for source in unit) for unit in units)


def check_start_epoch(start_epoch: int, mode: str) -> None:
    """Raises ``ValueError`` where repetition cannot begin at this epoch."""
    if start_epoch < 0:
        raise ValueError(
            f'start_epoch={start_epoch} is negative: use the number '
            'of the first epoch with replicas, counted from 0'
        )
    if start_epoch and mode != 'v1':
        raise ValueError(
            f'start_epoch={start_epoch} changes the length of the epochs with mode={mode!r}: use '
            "mode='v1', or two runs, the second with `load_from`"
        )


def count_samples(num_units: int, layout: Layout) -> int:
    """How many samples of the first ``num_units`` units the rank gets."""
    items, samples_per_item = num_units, layout.num_repeats
    if layout.placement == 'spread':
        items, samples_per_item = num_units * layout.num_repeats, 1
    dealt = (items - layout.rank + layout.world_size - 1) // layout.world_size
    return dealt * samples_per_item


def sources_of_samples(samples: np.ndarray, layout: Layout) -> np.ndarray:
    """Finds the sources that samples of the rank show.

    Args:
        samples: Positions in the stream of the rank, integers of any shape.
        layout: Where replicas go.

    Returns:
        Positions in the global sequence of sources, in the same shape.
    """
    if layout.placement == 'rank':
        rows, slots = np.divmod(samples, layout.num_repeats)
        units = layout.rank + layout.world_size * rows
    else:
        units, slots = np.divmod(layout.rank + layout.world_size * samples, layout.num_repeats)
    if layout.repeat_fraction == 1:
        return units
    return layout.sources_before(units) + np.where(layout.are_groups(units), 0, slots)


def count_units(num_sources: int, layout: Layout, mode: str, round_up: bool) -> int:
    """How many units an epoch has, over all ranks.

    Args:
        num_sources: Items in the data set.
        layout: Where replicas go.
        mode: ``'full'``: enough units to hold every source. ``'v1'``: as many samples
            as sources; the last unit is completed.
        round_up: Whether to add units until all ranks have equally many samples.

    Raises:
        ValueError: If ``mode`` is unknown.
    """
    _check_choice('mode', mode, MODES)
    units = math.ceil(num_sources / layout.num_repeats)
    if mode == 'full':
        units += bisect.bisect_left(
            range(units, num_sources),
            num_sources,
            key=lambda count: int(layout.sources_before(np.asarray(count))),
        )
    if not round_up:
        return units
    multiple = layout.world_size
    if layout.placement == 'spread':
        multiple //= math.gcd(layout.world_size, layout.num_repeats)
    return -(-units // multiple) * multiple  # rounded up


def shuffled_order(num_sources: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """Every source once.

    Args:
        num_sources: Items in the data set.
        seed: Any integer, the same on all ranks.
        epoch: Not negative. Each epoch has an independent permutation.
        shuffle: Whether to permute; the order is ascending otherwise.

    Returns:
        ``(num_sources,)``, a permutation of ``0 ... num_sources - 1``.
    """
    return _permutation(num_sources, seed, (_EPOCH_KEY, epoch), shuffle)


def short_order(
    num_sources: int, num_drawn: int, num_epochs: int, seed: int, epoch: int, shuffle: bool
) -> np.ndarray:
    """The sources of one short epoch, drawn without replacement within a pass.

    A *pass* is ``num_epochs`` epochs, ``0 ... num_epochs - 1`` and so on. Its epochs are
    consecutive slices of a permutation, which starts again where it ends, so that a pass holds
    every source equally often, within one. Each pass has a permutation of its own, so any two
    sources meet in an epoch sooner or later. In ``num_epochs`` epochs of two passes, a source
    may be drawn twice or not at all.

    Args:
        num_sources: Items in the data set.
        num_drawn: Sources in the epoch, repeated ones counted once.
        num_epochs: Epochs in a pass.
        seed: Any integer, the same on all ranks.
        epoch: Not negative.
        shuffle: Whether to permute; the sources of a pass ascend otherwise.

    Returns:
        ``(num_drawn,)`` sources, distinct if ``num_drawn`` is at most ``num_sources``.
    """
    number, place = divmod(epoch, num_epochs)
    permutation = _permutation(num_sources, seed, (_PASS_KEY, number), shuffle)
    start = place * num_drawn % num_sources
    return _cyclic_slice(permutation, start, start + num_drawn)


def _permutation(num_sources: int, seed: int, key: tuple[int, ...], shuffle: bool) -> np.ndarray:
    order = _ascending(num_sources)
    if shuffle:
        _generator(seed, *key).shuffle(order)
    return order


def _ascending(num_sources: int) -> np.ndarray:
    fits = num_sources <= np.iinfo(np.int32).max
    return np.arange(num_sources, dtype=np.int32 if fits else np.int64)


def _cyclic_slice(order: np.ndarray, start: int, stop: int) -> np.ndarray:
    """``order[start:stop]`` of the endless repetition of ``order``, a copy."""
    # Slices, since an array of positions would be twice as large as the result.
    laps = range(0, stop, len(order))
    return np.concatenate([order[max(0, start - lap) : stop - lap] for lap in laps])


def _generator(seed: int, *key: int) -> np.random.Generator:
    # The key is not added to the seed: epoch 1 of seed 0 must not be epoch 0 of seed 1.
    # The modulo is for negative seeds, which torch takes and NumPy does not.
    return np.random.default_rng(np.random.SeedSequence(seed % 2**64, spawn_key=key))


def epoch_chunks(
    num_sources: int,
    layout: Layout,
    mode: str,
    seed: int,
    epoch: int,
    shuffle: bool,
    round_up: bool,
    start_epoch: int = 0,
) -> Iterator[np.ndarray]:
    """The samples of one rank in one epoch.

    The ranks partition the epoch. Units added by ``round_up`` repeat the start of the
    order (``'full'``) or hold the next sources of the pass (``'v1'``). With placement
    ``'rank'`` no rank has a source in two groups of one epoch: a repetition comes
    ``num_sources`` groups later, and this is on the same rank only if ``world_size``
    divides ``num_sources``, in which case nothing is added. With ``'spread'``, and with
    units that are not groups, both may be on one rank, at opposite ends of the epoch.

    Args:
        num_sources: Items in the data set, 1 or more.
        layout: Where replicas go.
        mode: See :func:`count_units`.
        seed: Any integer, the same on all ranks.
        epoch: Not negative.
        shuffle: Whether sources are shuffled.
        round_up: Whether all ranks get equally many samples.
        start_epoch: In the epochs before it nothing is repeated. For mode ``'v1'``
            only, since it would change the length of the epochs of ``'full'``.

    Returns:
        An iterator over chunks ``(k,)`` of sources, which together are the stream of the rank.

    Raises:
        ValueError: If ``mode`` is unknown, or ``start_epoch`` does not fit it.
    """
    check_start_epoch(start_epoch, mode)
    num_units = count_units(num_sources, layout, mode, round_up)
    if epoch < start_epoch:
        layout = dataclasses.replace(layout, repeat_fraction=0.0)
    if mode == 'full' or epoch < start_epoch:
        order = shuffled_order(num_sources, seed, epoch, shuffle)
    else:
        num_drawn = int(layout.sources_before(np.asarray(num_units)))
        since = epoch - start_epoch
        order = short_order(num_sources, num_drawn, layout.num_repeats, seed, since, shuffle)
    return look_up(order, count_samples(num_units, layout), layout)


def look_up(order: np.ndarray, end: int, layout: Layout) -> Iterator[np.ndarray]:
    """Yields the sources of samples ``0 ... end - 1`` of the rank; ``order`` is repeated."""
    for left in range(0, end, _CHUNK):
        samples = np.arange(left, min(left + _CHUNK, end), dtype=np.int64)
        yield order[sources_of_samples(samples, layout) % len(order)]


def endless_chunks(
    num_sources: int,
    layout: Layout,
    seed: int,
    shuffle: bool,
    start: int = 0,
    first_source: int = 0,
) -> Iterator[np.ndarray]:
    """The samples of one rank in an endless sequence of passes over the data.

    Passes hold each source once, follow each other without padding, and have orders of
    their own. The ranks partition the sequence.

    Args:
        num_sources: Items in the data set, 1 or more.
        layout: Where replicas go.
        seed: Any integer, the same on all ranks.
        shuffle: Whether sources are shuffled.
        start: How many samples of this rank to leave out. Passes before that are not built.
        first_source: How many sources of the sequence to leave out before.

    Yields:
        Chunks ``(k,)`` of sources, which together are the stream of the rank.
    """
    order, built = np.empty(0, dtype=np.int64), -1
    for left in itertools.count(start, _CHUNK):
        samples = np.arange(left, left + _CHUNK, dtype=np.int64)
        positions = first_source + sources_of_samples(samples, layout)
        passes, places = np.divmod(positions, num_sources)
        # Positions ascend in the stream of a rank.
        for number in range(int(passes[0]), int(passes[-1]) + 1):
            first, last = np.searchsorted(passes, [number, number + 1])
            if first == last:
                continue
            if number != built:
                order = shuffled_order(num_sources, seed, number, shuffle)
                built = number
            yield order[places[first:last]]
