"""Order of the samples where only a part of the images has labels.

The stream of a rank consists of *units* of ``m`` samples: ``m`` labelled images, each once, or a
*group*, the ``m`` replicas of one unlabelled image. An epoch is a pass over the labelled images.
The unlabelled ones have an endless sequence of passes of their own, which goes on from epoch to
epoch. As in :mod:`lt_mm.core.sampling.replicas`, what a sample shows follows from its position,
the seed and the epoch alone.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from lt_mm.core.sampling.replicas import check_batch_size, check_num_sources, shuffled_order

_CHUNK = 4096  # units that are looked up at once
# Makes the passes over the unlabelled images independent of those over the labelled ones.
_STREAM_KEY = 2


@dataclasses.dataclass(frozen=True)
class PartlyLabelled:
    """Which images the samples of a rank show, epoch after epoch.

    Sources are numbered: the labelled ones first, then the unlabelled ones.

    Args:
        num_labelled: Labelled images.
        num_unlabelled: Unlabelled images.
        num_repeats: Samples in a unit and replicas of an unlabelled image, ``m``.
        share: Share of the samples that are unlabelled, in (0, 1), rounded to a fraction with a
            denominator of at most 1000. Groups are spaced evenly, in the same way on all ranks.
        seed: Any integer, the same on all ranks.
        shuffle: Whether images are shuffled.
        rank: This rank, counted from 0.
        world_size: Number of ranks.
        weak: Whether the first replica of a group is a weak copy, whose source is numbered
            ``num_unlabelled`` higher.

    Raises:
        ValueError: If the share is out of range, or a part is empty.
    """

    num_labelled: int
    num_unlabelled: int
    num_repeats: int
    share: float
    seed: int
    shuffle: bool = True
    rank: int = 0
    world_size: int = 1
    weak: bool = False

    def __post_init__(self) -> None:
        check_num_sources(self.num_labelled)
        check_num_sources(self.num_unlabelled)
        check_share(self.share)

    def groups_before(self, rows: np.ndarray) -> np.ndarray:
        """How many of the units of this rank before a unit are groups: integers to integers."""
        share = _fraction(self.share)
        return rows * share.numerator // share.denominator

    @property
    def num_rows(self) -> int:
        """How many units this rank has in an epoch.

        They show every labelled image, and all ranks have equally many. Some labelled images
        come again where their number does not fill the last units. The groups that follow the
        last labelled unit belong to the epoch.
        """
        labelled_rows = -(-self.num_labelled // (self.num_repeats * self.world_size))
        share = _fraction(self.share)
        # The next labelled unit comes within one period of the pattern.
        most = -(-(labelled_rows + 1) * share.denominator // (share.denominator - share.numerator))
        return bisect.bisect_right(
            range(most + 1),
            labelled_rows,
            key=lambda rows: rows + 1 - int(self.groups_before(np.asarray(rows + 1))),
        )

    def __len__(self) -> int:
        """How many samples this rank has in an epoch."""
        return self.num_rows * self.num_repeats

    def chunks(self, epoch: int) -> Iterator[np.ndarray]:
        """The samples of this rank in an epoch: chunks (k,) of sources."""
        labelled = shuffled_order(self.num_labelled, self.seed, epoch, self.shuffle)
        end = self.num_rows
        for left in range(0, end, _CHUNK):
            rows = np.arange(left, min(left + _CHUNK, end), dtype=np.int64)
            groups = self.groups_before(rows)
            is_group = self.groups_before(rows + 1) > groups
            units = self.world_size * (rows - groups) + self.rank
            places = units[:, None] * self.num_repeats + np.arange(self.num_repeats)
            sources = labelled[places % self.num_labelled].astype(np.int64)
            numbers = self.world_size * groups[is_group] + self.rank
            numbers += epoch * self.world_size * int(self.groups_before(np.asarray(end)))
            sources[is_group] = self.num_labelled + self._unlabelled(numbers)[:, None]
            if self.weak:
                sources[is_group, 0] += self.num_unlabelled
            yield sources.reshape(-1)

    def endless_chunks(self, start: int = 0) -> Iterator[np.ndarray]:
        """The samples of this rank in all epochs from the first on, without ``start`` of them."""
        epoch, skipped = divmod(start, len(self))
        for own in itertools.count(epoch):
            for chunk in self.chunks(own):
                yield chunk[skipped:]
                skipped = max(skipped - len(chunk), 0)

    def _unlabelled(self, numbers: np.ndarray) -> np.ndarray:
        """The unlabelled image of each group of the endless sequence: (k,) to (k,), ascending."""
        passes, places = np.divmod(numbers, self.num_unlabelled)
        sources = np.empty_like(places)
        for number in np.unique(passes).tolist():
            first, last = np.searchsorted(passes, [number, number + 1])
            order = shuffled_order(
                self.num_unlabelled, _stream_seed(self.seed), number, self.shuffle
            )
            sources[first:last] = order[places[first:last]]
        return sources


def check_share(share: float) -> None:
    """Raises ``ValueError`` for what is no share of the samples."""
    if not 0 < share < 1:
        raise ValueError(
            f'unlabelled_share={share} is not between 0 and 1: use the share of unlabelled samples '
            'in a batch, such as 0.5; without unlabelled images use the labelled data set alone'
        )


def check_mixed_batch_size(batch_size: int, num_repeats: int, share: float) -> None:
    """Makes sure that every batch of a rank holds the same share of unlabelled samples.

    Args:
        batch_size: Samples in a batch of one rank.
        num_repeats: Samples in a unit.
        share: See :class:`PartlyLabelled`.

    Raises:
        ValueError: If batches would cut groups apart, or hold different numbers of them, of which
            none might be labelled.
    """
    check_batch_size(batch_size, num_repeats)
    unit = num_repeats * _fraction(share).denominator
    if batch_size % unit:
        raise ValueError(
            f'batch_size={batch_size} cannot hold a share of {share} of unlabelled samples in '
            f'groups of {num_repeats}: set `train_dataloader.batch_size` to a multiple of {unit}, '
            'or change `train_dataloader.sampler.unlabelled_share`'
        )


def _fraction(share: float) -> Fraction:
    return Fraction(share).limit_denominator(1000)


def _stream_seed(seed: int) -> int:
    sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(_STREAM_KEY,))
    return int(sequence.generate_state(1, np.uint64)[0])
