"""Which sources a pass over the data has yet to show, and how they are dealt out anew.

A *pass* shows every source once: an epoch, or in mode ``'v1'`` as many epochs as there are
replicas in a group. When a run goes on with another number of ranks or another batch size, the
sources that are left of the pass are dealt out as whole groups to the new layout.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lt_mm.core.sampling.replicas import Layout, count_samples, count_units, look_up


@dataclasses.dataclass(frozen=True)
class Rest:
    """What is left of a pass at some moment.

    Attributes:
        epoch: The epoch that goes on, counted from 0.
        order: The sources that are left, ``(n,)`` distinct integers, those of this epoch first.
        num_now: How many of them belong to this epoch; the others to the later ones of the pass.
    """

    epoch: int
    order: np.ndarray
    num_now: int


def rest_of_pass(
    epoch: int, whole: np.ndarray, current: np.ndarray, shown: Sequence[np.ndarray]
) -> Rest:
    """What a pass has yet to show.

    Args:
        epoch: The present epoch.
        whole: All sources of the pass, in their order.
        current: The sources of the present epoch, in their order.
        shown: The sources that the pass has shown already, in this epoch or before.
    """
    now = _without(current, shown)
    later = _without(whole, [*shown, now])
    return Rest(epoch, np.concatenate([now, later]), len(now))


def merge_streams(streams: Sequence[np.ndarray]) -> np.ndarray:
    """The sources in the streams of all ranks, each once, in the order in which they are shown."""
    table = np.full((max(map(len, streams), default=0), len(streams)), -1, dtype=np.int64)
    for rank, stream in enumerate(streams):
        table[: len(stream), rank] = stream
    sources = table.ravel()
    return _distinct(sources[sources >= 0])


def translate(rest: Rest, new_numbers: np.ndarray) -> Rest:
    """The rest where the items of the data set have other numbers.

    Args:
        rest: With the old numbers.
        new_numbers: The new number of each entry of ``rest.order``; negative for an item that is
            no longer there.
    """
    kept = new_numbers >= 0
    return Rest(rest.epoch, new_numbers[kept], int(kept[: rest.num_now].sum()))


def deal_groups(order: np.ndarray, layout: Layout, round_up: bool) -> np.ndarray:
    """The samples of the rank, if the sources are dealt out in whole units.

    Args:
        order: ``(n,)`` sources; repeated from its start where units or ranks need more.
        layout: Where replicas go.
        round_up: Whether all ranks get equally many samples.

    Returns:
        ``(k,)`` sources, one a sample.
    """
    num_units = count_units(len(order), layout, 'full', round_up)
    samples = look_up(order, count_samples(num_units, layout), layout)
    return np.concatenate([order[:0], *samples])


def deal_singles(order: np.ndarray, rank: int, world_size: int, round_up: bool) -> np.ndarray:
    """As :func:`deal_groups` without repetition: the ranks get single sources in turn."""
    if not len(order):
        return order
    total = math.ceil(len(order) / world_size) * world_size if round_up else len(order)
    return np.resize(order, total)[rank::world_size]


def groups_of_rest(
    rest: Rest, epoch: int, layout: Layout, round_up: bool, natural: np.ndarray | None
) -> np.ndarray | None:
    """The sources of an epoch that goes on with what is left of a pass.

    Args:
        rest: What is left.
        epoch: Not before ``rest.epoch``, and in the same pass.
        layout: Where replicas go.
        round_up: Whether all ranks get equally many samples.
        natural: The distinct sources that the epoch would have without ``rest``; None where a
            pass is one epoch. They say how many sources the later epochs of the pass have, and
            fill up an epoch for which too few are left.

    Returns:
        The sources to deal out; None if nothing is left, so that the epoch is as it would be.
    """
    num_units = count_units(rest.num_now, layout, 'full', round_up)
    drawn = int(layout.sources_before(np.asarray(num_units)))
    if natural is None or epoch == rest.epoch:
        return rest.order[:drawn]
    start = drawn + (epoch - rest.epoch - 1) * len(natural)
    order = rest.order[start : start + len(natural)]
    if not len(order):
        return None
    return np.concatenate([order, _without(natural, [order])])[: len(natural)]


def sources_shown(num_samples: int, layout: Layout) -> int:
    """How many sources of an endless sequence come to an end with samples of all ranks.

    Args:
        num_samples: Samples that each rank has shown. A group that is cut counts as shown.
        layout: Where replicas go.
    """
    if layout.placement == 'rank':
        units = math.ceil(num_samples / layout.num_repeats) * layout.world_size
    else:
        units = math.ceil(num_samples * layout.world_size / layout.num_repeats)
    return int(layout.sources_before(np.asarray(units)))


def moved_position(position: int, num_before: int, num_now: int) -> int:
    """The position in an endless sequence of passes over a data set that changed its size.

    The pass stays the same, and so does the share of it that was shown, rounded down.

    Args:
        position: Sources shown since the start.
        num_before: Items that the data set had.
        num_now: Items that it has.
    """
    number, place = divmod(position, num_before)
    return number * num_now + place * num_now // num_before


def _without(order: np.ndarray, excluded: Sequence[np.ndarray]) -> np.ndarray:
    """The distinct entries of an order that are in none of the others."""
    distinct = _distinct(order)
    return distinct[~np.isin(distinct, np.concatenate([distinct[:0], *excluded]))]


def _distinct(sources: np.ndarray) -> np.ndarray:
    """Every entry where it comes first."""
    _, first = np.unique(sources, return_index=True)
    return sources[np.sort(first)]
