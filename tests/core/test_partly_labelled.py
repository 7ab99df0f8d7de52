"""The order of labelled and unlabelled images, against one that is built sample by sample."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.sampling.partly_labelled import PartlyLabelled, check_mixed_batch_size

orders = st.fixed_dictionaries(
    dict(
        num_labelled=st.integers(1, 40),
        num_unlabelled=st.integers(1, 40),
        num_repeats=st.integers(2, 5),
        share=st.sampled_from([1 / 2, 1 / 4, 3 / 4, 2 / 3, 0.3, 0.9]),
        seed=st.integers(-3, 2**40),
        shuffle=st.booleans(),
    )
)


def ranks(options, world_size, epoch):
    made = [
        PartlyLabelled(**options, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    streams = [np.concatenate(list(each.chunks(epoch))).tolist() for each in made]
    assert [len(stream) for stream in streams] == [len(each) for each in made]
    return streams


def naive_kinds(labelled_units, share):
    """Unit after unit: a group wherever the share of groups would fall behind; with its tail."""
    share, kinds, groups = Fraction(share).limit_denominator(1000), [], 0
    while True:
        is_group = (len(kinds) + 1) * share >= groups + 1
        if not is_group and kinds.count('labelled') == labelled_units:
            return kinds
        kinds.append('group' if is_group else 'labelled')
        groups += is_group


@settings(deadline=None, max_examples=80)
@given(options=orders, world_size=st.integers(1, 3), epoch=st.integers(0, 4))
def test_units_and_passes(options, world_size, epoch):
    m, labelled = options['num_repeats'], options['num_labelled']
    streams = ranks(options, world_size, epoch)
    units = -(-labelled // (m * world_size))
    kinds = naive_kinds(units, options['share'])
    shown = []
    for row, kind in enumerate(kinds):
        for stream in streams:
            unit = stream[row * m : (row + 1) * m]
            if kind == 'group':
                assert len(set(unit)) == 1 and unit[0] >= labelled
            else:
                assert all(source < labelled for source in unit)
                shown += unit
    assert all(len(stream) == len(kinds) * m for stream in streams)
    # Every labelled image once; those that fill the last units are the first ones again.
    assert sorted(shown[:labelled]) == list(range(labelled))
    assert shown[labelled:] == [shown[place % labelled] for place in range(labelled, len(shown))]


@settings(deadline=None, max_examples=60)
@given(options=orders, world_size=st.integers(1, 3))
def test_unlabelled_passes_go_on_over_epochs(options, world_size):
    m, labelled, count = (
        options[name] for name in ('num_repeats', 'num_labelled', 'num_unlabelled')
    )
    drawn = []
    for epoch in range(3):
        streams = ranks(options, world_size, epoch)
        for row in range(len(streams[0]) // m):
            units = [stream[row * m] for stream in streams]
            if units[0] >= labelled:
                drawn += [unit - labelled for unit in units]
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count]) == list(range(count))
    counts = Counter(drawn)
    sizes = [counts[source] for source in range(count)]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None, max_examples=30)
@given(options=orders, epoch=st.integers(0, 5))
def test_a_function_of_seed_and_epoch(options, epoch):
    assert ranks(options, 2, epoch) == ranks(options, 2, epoch)
    one, two = ranks(options, 1, 0)[0], ranks(dict(options, seed=options['seed'] + 1), 1, 0)[0]
    if options['shuffle'] and options['num_labelled'] > 20 and options['num_unlabelled'] > 20:
        assert one != two


@settings(deadline=None, max_examples=60)
@given(options=orders, units=st.integers(1, 12), epoch=st.integers(0, 3))
def test_every_batch_has_the_share(options, units, epoch):
    """Of those sizes that are allowed; a last batch that is smaller begins with labelled ones."""
    m, labelled = options['num_repeats'], options['num_labelled']
    share = Fraction(options['share']).limit_denominator(1000)
    if units % share.denominator:
        with pytest.raises(ValueError, match='share'):
            check_mixed_batch_size(units * m, m, options['share'])
        return
    check_mixed_batch_size(units * m, m, options['share'])
    (stream,) = ranks(options, 1, epoch)
    for start in range(0, len(stream), units * m):
        batch = stream[start : start + units * m]
        unlabelled = sum(source >= labelled for source in batch)
        assert batch[0] < labelled
        if len(batch) == units * m:
            assert unlabelled == share * len(batch)


@pytest.mark.parametrize('share', [0, 1, -0.5, 2, float('nan')])
def test_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match='unlabelled_share'):
        PartlyLabelled(5, 5, 2, share, seed=0)


@pytest.mark.parametrize('sizes', [(0, 5), (5, 0)])
def test_refuses_empty_parts(sizes):
    with pytest.raises(ValueError, match='empty'):
        PartlyLabelled(*sizes, 2, 0.5, seed=0)


def test_batches_of_cut_groups_are_refused():
    with pytest.raises(ValueError, match='num_repeats'):
        check_mixed_batch_size(6, 4, 0.5)


def test_chunks_do_not_show():
    """More units than are looked up at once."""
    order = PartlyLabelled(9000, 30, 2, 0.5, seed=3)
    chunks = list(order.chunks(1))
    assert len(chunks) == 3
    shown = np.concatenate(chunks)
    assert len(shown) == len(order) == 18000
    assert sorted(shown[shown < 9000]) == list(range(9000))
    assert np.bincount(shown[shown >= 9000] - 9000).tolist() == [300] * 30


@settings(deadline=None, max_examples=40)
@given(options=orders, epoch=st.integers(0, 2))
def test_the_first_of_a_group_is_weak(options, epoch):
    m, labelled, count = (
        options[name] for name in ('num_repeats', 'num_labelled', 'num_unlabelled')
    )
    plain = np.concatenate(list(PartlyLabelled(**options).chunks(epoch)))
    weak = np.concatenate(list(PartlyLabelled(**options, weak=True).chunks(epoch)))
    for row in range(0, len(plain), m):
        shift = count if plain[row] >= labelled else 0
        assert weak[row] == plain[row] + shift
        assert (weak[row + 1 : row + m] == plain[row + 1 : row + m]).all()


@settings(deadline=None, max_examples=30)
@given(options=orders, start=st.integers(0, 300))
def test_the_endless_stream_is_that_of_all_epochs(options, start):
    order = PartlyLabelled(**options)
    epochs = np.concatenate([each for epoch in range(4) for each in order.chunks(epoch)])
    expected = epochs[start:][:200]
    found = []
    for chunk in order.endless_chunks(start):
        found += chunk.tolist()
        if len(found) >= len(expected):
            break
    assert found[: len(expected)] == expected.tolist()
