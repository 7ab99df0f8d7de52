"""What is left of a pass is shown once, in whatever layouts the pass is trained."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.sampling.remaining import (
    Rest,
    deal_groups,
    deal_singles,
    groups_of_rest,
    merge_streams,
    moved_position,
    rest_of_pass,
    sources_shown,
    translate,
)
from lt_mm.core.sampling.replicas import Layout, endless_chunks, epoch_chunks, shuffled_order

_many = settings(max_examples=150, deadline=None)

LAYOUTS = st.builds(
    dict,
    world_size=st.integers(1, 5),
    groups_per_batch=st.integers(1, 4),
    num_batches=st.integers(0, 4),
)


def layouts_of(part, num_repeats, placement='rank', repeat_fraction=1.0):
    return [
        Layout(num_repeats, placement, rank, part['world_size'], repeat_fraction)
        for rank in range(part['world_size'])
    ]


def deal_out(order, part, num_repeats, placement, share, round_up):
    """The streams of all ranks for what is left, each up to the batches that are trained."""
    layouts = layouts_of(part, num_repeats, placement, share)
    streams = [deal_groups(order, layout, round_up) for layout in layouts]
    end = part['num_batches'] * part['groups_per_batch'] * num_repeats
    return streams, [stream[:end] for stream in streams]


@_many
@given(
    size=st.integers(1, 60),
    num_repeats=st.integers(2, 4),
    placement=st.sampled_from(['rank', 'spread']),
    share=st.sampled_from([1.0, 0.5, 0.25]),
    parts=st.lists(LAYOUTS, min_size=1, max_size=4),
)
def test_every_source_of_an_epoch_is_shown_once(size, num_repeats, placement, share, parts):
    """In any sequence of layouts; without rounding up, nothing is shown twice."""
    order = shuffled_order(size, 3, 5, True)
    seen = Counter()
    for part in parts:
        _, trained = deal_out(order, part, num_repeats, placement, share, round_up=False)
        shown = np.concatenate(trained)
        seen.update(set(shown.tolist()))
        rest = rest_of_pass(5, order, order, [shown])
        assert list(rest.order) == [each for each in order if each not in set(shown)]
        order = rest.order
    streams, _ = deal_out(order, parts[-1], num_repeats, placement, share, round_up=False)
    seen.update(set(np.concatenate(streams).tolist()))
    assert seen == Counter(range(size))


@_many
@given(
    order=st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=60),
    num_repeats=st.integers(2, 4),
    world_size=st.integers(1, 6),
)
def test_groups_stay_whole_and_ranks_are_equal(order, num_repeats, world_size):
    order = np.array(order)
    layouts = [Layout(num_repeats, 'rank', rank, world_size) for rank in range(world_size)]
    streams = [deal_groups(order, layout, True) for layout in layouts]
    assert len({len(stream) for stream in streams}) == 1
    groups = [group for stream in streams for group in stream.reshape(-1, num_repeats).tolist()]
    assert all(len(set(group)) == 1 for group in groups)
    times = Counter(group[0] for group in groups)
    # Only as many as are needed to make the ranks equal come again.
    assert set(times) == set(order.tolist())
    assert sum(times.values()) - len(order) == -len(order) % world_size


@_many
@given(
    size=st.integers(1, 60),
    world_size=st.integers(1, 6),
    batch=st.integers(1, 5),
    num_batches=st.integers(0, 5),
    later=st.integers(1, 6),
)
def test_single_sources_are_shown_once(size, world_size, batch, num_batches, later):
    order = shuffled_order(size, 0, 0, True)
    streams = [deal_singles(order, rank, world_size, False) for rank in range(world_size)]
    shown = np.concatenate([stream[: batch * num_batches] for stream in streams])
    rest = rest_of_pass(0, order, order, [shown])
    streams = [deal_singles(rest.order, rank, later, False) for rank in range(later)]
    assert sorted([*shown, *np.concatenate(streams)]) == list(range(size))
    equal = [deal_singles(rest.order, rank, later, True) for rank in range(later)]
    assert len({len(stream) for stream in equal}) == 1
    assert set(np.concatenate(equal)) == set(rest.order.tolist())


def v1_epoch(size, part, num_repeats, epoch):
    """The streams of all ranks in an epoch of mode v1, as the sampler gives them."""
    return [
        np.concatenate(list(epoch_chunks(size, layout, 'v1', 7, epoch, True, True)))
        for layout in layouts_of(part, num_repeats)
    ]


@_many
@given(
    size=st.integers(1, 60),
    num_repeats=st.integers(2, 4),
    place=st.integers(0, 3),
    first=LAYOUTS,
    second=LAYOUTS,
)
def test_a_short_pass_that_goes_on_shows_every_source(size, num_repeats, place, first, second):
    """A pass of mode v1 is ``num_repeats`` epochs; the layout changes in one of them."""
    changed = min(place, num_repeats - 1)
    streams = [v1_epoch(size, first, num_repeats, epoch) for epoch in range(num_repeats)]
    end = first['num_batches'] * first['groups_per_batch'] * num_repeats
    earlier = [merge_streams(each) for each in streams[:changed]]
    shown = [*earlier, *(stream[:end] for stream in streams[changed])]
    whole = np.concatenate([merge_streams(each) for each in streams])
    rest = rest_of_pass(changed, whole, merge_streams(streams[changed]), shown)
    before = set(np.concatenate(shown).tolist()) if shown else set()
    assert set(rest.order.tolist()) == set(range(size)) - before
    assert len(set(rest.order.tolist())) == len(rest.order)
    after = []
    for epoch in range(changed, num_repeats):
        natural = merge_streams(v1_epoch(size, second, num_repeats, epoch))
        for layout in layouts_of(second, num_repeats):
            order = groups_of_rest(rest, epoch, layout, True, natural)
            if order is not None:
                assert len(set(order.tolist())) == len(order)
                after.append(deal_groups(order, layout, True))
    assert before | set(np.concatenate([*after, rest.order[:0]]).tolist()) == set(range(size))


@_many
@given(
    size=st.integers(1, 30),
    num_repeats=st.integers(2, 4),
    placement=st.sampled_from(['rank', 'spread']),
    share=st.sampled_from([1.0, 0.5]),
    parts=st.lists(LAYOUTS, min_size=2, max_size=4),
)
def test_an_endless_stream_goes_on_where_it_stopped(size, num_repeats, placement, share, parts):
    """Whole batches of all ranks; a group that is cut between them counts as shown."""
    first, seen = 0, []
    for part in parts:
        end = part['num_batches'] * part['groups_per_batch'] * num_repeats
        shown = [
            take(endless_chunks(size, layout, 1, True, first_source=first), end)
            for layout in layouts_of(part, num_repeats, placement, share)
        ]
        count = sources_shown(end, layouts_of(part, num_repeats, placement, share)[0])
        expected = take_sources(size, first, count)
        assert Counter(np.concatenate(shown).tolist()).keys() == set(expected)
        seen += expected
        first += count
    assert seen == take_sources(size, 0, first)


def take(chunks, count):
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        found = np.concatenate([found, next(chunks)])
    return found[:count]


def take_sources(size, start, count):
    passes = -(-(start + count) // size)
    orders = [shuffled_order(size, 1, number, True).tolist() for number in range(passes)]
    return list(itertools.chain(*orders))[start : start + count]


def test_images_that_are_gone_are_left_out():
    rest = Rest(2, np.array([5, 0, 3, 1]), 2)
    found = translate(rest, np.array([4, -1, 2, 0]))
    assert (found.epoch, found.order.tolist(), found.num_now) == (2, [4, 2, 0], 1)


@pytest.mark.parametrize('position, expected', [(0, 0), (10, 8), (15, 12), (19, 15), (20, 16)])
def test_a_position_in_a_smaller_data_set(position, expected):
    """Ten images become eight: the pass stays, and the share of it, rounded down."""
    assert moved_position(position, 10, 8) == expected
