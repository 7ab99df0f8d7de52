"""Groups, ranks and epochs of repeated augmentation."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.sampling import replicas
from lt_mm.core.sampling.replicas import (
    Layout,
    check_batch_size,
    check_num_sources,
    count_samples,
    count_units,
    endless_chunks,
    epoch_chunks,
    holds_whole_groups,
    short_order,
    shuffled_order,
    sources_of_samples,
)

SIZES = st.integers(1, 60)
REPEATS = st.integers(2, 7)
WORLDS = st.integers(1, 9)
SEEDS = st.integers(-5, 2**40)
EPOCHS = st.integers(0, 50)
MODES = st.sampled_from(replicas.MODES)
PLACEMENTS = st.sampled_from(replicas.PLACEMENTS)
SHUFFLES = st.booleans()
SHARES = st.fractions(0, 1, max_denominator=12)

# No deadline: the first example pays for imports, and machines may be slow.
_many = settings(max_examples=150, deadline=None)
_some = settings(max_examples=60, deadline=None)


def _epoch(size, layout, mode='full', seed=0, epoch=0, shuffle=True, round_up=True):
    chunks = epoch_chunks(size, layout, mode, seed, epoch, shuffle, round_up)
    return [source for chunk in chunks for source in chunk.tolist()]


def _all_ranks(world_size, num_repeats, placement, *args, **kwargs):
    return [
        _epoch(
            kwargs['size'],
            Layout(num_repeats, placement, rank, world_size),
            *args,
            **{k: v for k, v in kwargs.items() if k != 'size'},
        )
        for rank in range(world_size)
    ]


def _reference_deal(groups, num_repeats, placement, world_size):
    """Streams of all ranks for an order that is padded already."""
    streams = [[] for _ in range(world_size)]
    if placement == 'rank':
        for position, source in enumerate(groups):
            streams[position % world_size] += [source] * num_repeats
    else:
        samples = [source for source in groups for _ in range(num_repeats)]
        for position, source in enumerate(samples):
            streams[position % world_size].append(source)
    return streams


def _reference_padded(order, num_repeats, placement, world_size):
    """Repeats the order from its start until all ranks are equally long."""
    groups, again = list(order), itertools.cycle(order)
    while True:
        streams = _reference_deal(groups, num_repeats, placement, world_size)
        if len(set(map(len, streams))) == 1:
            return groups
        groups.append(next(again))


def _groups(stream, num_repeats):
    """Cuts a stream into groups, and fails where one is not whole."""
    assert len(stream) % num_repeats == 0
    groups = [stream[i : i + num_repeats] for i in range(0, len(stream), num_repeats)]
    assert all(len(set(group)) == 1 for group in groups)
    return [group[0] for group in groups]


class TestLayout:
    @pytest.mark.parametrize('num_repeats', [1, 0, -3, True])
    def test_too_few_replicas(self, num_repeats):
        with pytest.raises(ValueError, match='no replicas to pair.*2 or more'):
            Layout(num_repeats)

    @pytest.mark.parametrize('num_repeats', [2.0, '3', None])
    def test_number_of_replicas_is_an_int(self, num_repeats):
        with pytest.raises(ValueError, match='is not an int'):
            Layout(num_repeats)

    def test_unknown_placement(self):
        with pytest.raises(ValueError, match="'ranks'.*'rank', 'spread'"):
            Layout(2, 'ranks')

    @pytest.mark.parametrize('rank,world_size', [(2, 2), (-1, 2), (0, 0)])
    def test_rank_out_of_range(self, rank, world_size):
        with pytest.raises(ValueError, match=f'rank={rank}'):
            Layout(2, 'rank', rank, world_size)


class TestDeal:
    """Which replicas go to which rank."""

    def test_rank_placement_by_hand(self):
        streams = _all_ranks(2, 2, 'rank', size=3, shuffle=False, round_up=False)
        assert streams == [[0, 0, 2, 2], [1, 1]]

    def test_rank_placement_rounded_up_by_hand(self):
        streams = _all_ranks(2, 2, 'rank', size=3, shuffle=False)
        assert streams == [[0, 0, 2, 2], [1, 1, 0, 0]]

    def test_spread_placement_by_hand(self):
        # Global stream 000 111 222 333, dealt to four ranks in turn.
        streams = _all_ranks(4, 3, 'spread', size=4, shuffle=False)
        assert streams == [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS)
    def test_positions_match_the_naive_deal(self, groups, num_repeats, world_size, placement):
        expected = _reference_deal(range(groups), num_repeats, placement, world_size)
        for rank in range(world_size):
            layout = Layout(num_repeats, placement, rank, world_size)
            samples = np.arange(count_samples(groups, layout))
            found = sources_of_samples(samples, layout).tolist()
            assert found == expected[rank]

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SEEDS, EPOCHS, SHUFFLES)
    def test_full_epoch_matches_the_naive_padding(
        self, size, num_repeats, world_size, placement, seed, epoch, shuffle
    ):
        order = shuffled_order(size, seed, epoch, shuffle).tolist()
        padded = _reference_padded(order, num_repeats, placement, world_size)
        expected = _reference_deal(padded, num_repeats, placement, world_size)
        found = _all_ranks(
            world_size, num_repeats, placement, 'full', seed, epoch, shuffle, size=size
        )
        assert found == expected

    @_many
    @given(SIZES, REPEATS, WORLDS, MODES, SEEDS, EPOCHS, st.booleans())
    def test_groups_are_consecutive(
        self, size, num_repeats, world_size, mode, seed, epoch, round_up
    ):
        for stream in _all_ranks(
            world_size, num_repeats, 'rank', mode, seed, epoch, round_up=round_up, size=size
        ):
            groups = _groups(stream, num_repeats)
            assert len(set(groups)) == len(groups)  # No rank has one twice.

    @_many
    @given(SIZES, REPEATS, WORLDS, MODES, PLACEMENTS, SEEDS, EPOCHS)
    def test_nothing_is_duplicated_without_round_up(
        self, size, num_repeats, world_size, mode, placement, seed, epoch
    ):
        streams = _all_ranks(
            world_size, num_repeats, placement, mode, seed, epoch, round_up=False, size=size
        )
        counts = Counter(itertools.chain(*streams))
        assert set(counts.values()) == {num_repeats}
        wanted = size if mode == 'full' else -(-size // num_repeats)
        assert len(counts) == wanted
        lengths = list(map(len, streams))
        step = num_repeats if placement == 'rank' else 1
        assert max(lengths) - min(lengths) in (0, step)

    @_many
    @given(SIZES, REPEATS, WORLDS, MODES, PLACEMENTS, SEEDS, EPOCHS)
    def test_round_up_makes_ranks_equally_long(
        self, size, num_repeats, world_size, mode, placement, seed, epoch
    ):
        streams = _all_ranks(world_size, num_repeats, placement, mode, seed, epoch, size=size)
        assert len(set(map(len, streams))) == 1
        counts = Counter(itertools.chain(*streams))
        assert all(n % num_repeats == 0 for n in counts.values())
        plain = size * num_repeats if mode == 'full' else size
        excess = sum(counts.values()) - plain
        assert 0 <= excess < (world_size + 1) * num_repeats
        if mode == 'full':
            assert len(counts) == size

    @_many
    @given(SIZES, REPEATS, st.integers(2, 9), SEEDS)
    def test_spread_replicas_are_on_different_ranks(self, size, num_repeats, world_size, seed):
        streams = _all_ranks(
            world_size, num_repeats, 'spread', seed=seed, round_up=False, size=size
        )
        for source in range(size):
            holders = sum(source in stream for stream in streams)
            assert holders == min(num_repeats, world_size)

    def test_spread_is_rank_placement_on_one_rank(self):
        assert _epoch(9, Layout(3, 'spread')) == _epoch(9, Layout(3, 'rank'))

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="'v2'.*'full', 'v1'"):
            count_units(4, Layout(2), 'v2', True)

    def test_epoch_longer_than_a_chunk(self):
        # Chunk borders may lie inside a group; they must not show.
        size, num_repeats = 3 * replicas._CHUNK // 5 + 1, 5
        expected = np.repeat(shuffled_order(size, 3, 2, True), num_repeats)
        assert _epoch(size, Layout(num_repeats), seed=3, epoch=2) == expected.tolist()


class TestShuffle:
    @_many
    @given(SIZES, SEEDS, EPOCHS)
    def test_is_a_permutation(self, size, seed, epoch):
        order = shuffled_order(size, seed, epoch, True)
        assert sorted(order.tolist()) == list(range(size))

    def test_depends_on_seed_and_epoch(self):
        orders = {
            tuple(shuffled_order(100, seed, epoch, True))
            for seed in (0, 1, 2, 2**40, -1)
            for epoch in range(4)
        }
        assert len(orders) == 20

    @pytest.mark.parametrize('mode', replicas.MODES)
    def test_is_deterministic(self, mode):
        layout = Layout(3, 'rank', 1, 2)
        first = _epoch(100, layout, mode, seed=5, epoch=7)
        _epoch(100, layout, mode, seed=5, epoch=0)
        np.random.rand(3)
        assert _epoch(100, layout, mode, seed=5, epoch=7) == first

    def test_every_position_gets_every_source(self):
        # 3 sources, 600 epochs: a mean of 200 each, standard deviation 11.5.
        first = Counter(int(shuffled_order(3, 0, epoch, True)[0]) for epoch in range(600))
        assert all(140 < first[source] < 260 for source in range(3))

    def test_ascending_without_shuffle(self):
        assert shuffled_order(4, 9, 5, False).tolist() == [0, 1, 2, 3]

    def test_indices_are_small_integers(self):
        assert shuffled_order(10, 0, 0, True).dtype == np.int32
        assert short_order(10, 5, 2, 0, 1, True).dtype == np.int32


class TestBalance:
    """The short epochs of ``'v1'``."""

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SEEDS, EPOCHS, SHUFFLES, st.booleans())
    def test_a_pass_counts_sources_equally(
        self, size, num_repeats, world_size, placement, seed, number, shuffle, round_up
    ):
        counts = np.zeros(size, int)
        for place in range(num_repeats):
            for stream in _all_ranks(
                world_size,
                num_repeats,
                placement,
                'v1',
                seed,
                number * num_repeats + place,
                shuffle,
                round_up,
                size=size,
            ):
                np.add.at(counts, stream, 1)
        counts, rest = np.divmod(counts, num_repeats)
        assert not rest.any()
        assert counts.min() >= 1
        assert counts.max() - counts.min() <= 1

    @_many
    @given(st.integers(1, 12), REPEATS, SEEDS, EPOCHS)
    def test_a_pass_holds_each_source_once(self, num_drawn, num_epochs, seed, number):
        size, first = num_drawn * num_epochs, number * num_epochs
        orders = [
            short_order(size, num_drawn, num_epochs, seed, first + place, True)
            for place in range(num_epochs)
        ]
        assert sorted(np.concatenate(orders).tolist()) == list(range(size))

    @_many
    @given(SIZES, st.integers(1, 80), REPEATS, SEEDS, EPOCHS)
    def test_an_epoch_holds_a_source_once(self, size, num_drawn, num_epochs, seed, epoch):
        order = short_order(size, num_drawn, num_epochs, seed, epoch, True)
        assert len(order) == num_drawn
        assert len(set(order.tolist())) == min(size, num_drawn)

    def test_unshuffled_by_hand(self):
        orders = [short_order(5, 3, 2, 0, epoch, False).tolist() for epoch in range(4)]
        assert orders == [[0, 1, 2], [3, 4, 0], [0, 1, 2], [3, 4, 0]]

    def test_more_groups_than_sources_by_hand(self):
        orders = [short_order(2, 5, 2, 0, epoch, False).tolist() for epoch in range(3)]
        assert orders == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]

    @pytest.mark.parametrize('num_repeats', [2, 3])
    def test_any_two_sources_meet(self, num_repeats):
        # 12 sources, 40 passes: a pair fails to meet with a probability below 3e-6.
        met = np.zeros((12, 12), int)
        for epoch in range(40 * num_repeats):
            sources = sorted(set(_epoch(12, Layout(num_repeats), 'v1', epoch=epoch)))
            met[np.ix_(sources, sources)] += 1
        assert met.min() > 0
        # A given pair meets in (drawn - 1) / 11 of the passes, on average.
        share = met[~np.eye(12, dtype=bool)].mean() / 40
        assert share == pytest.approx((12 / num_repeats - 1) / 11)

    def test_every_pass_is_cut_differently(self):
        halves = {frozenset(short_order(60, 30, 2, 4, 2 * number, True)) for number in range(20)}
        assert len(halves) == 20
        # The last epoch of a pass does not tell the first one of the next.
        shared = [
            len({*short_order(60, 30, 2, 4, n - 1, True)} & {*short_order(60, 30, 2, 4, n, True)})
            for n in range(2, 42, 2)
        ]
        assert 10 < np.mean(shared) < 20

    def test_composition_depends_on_the_seed(self):
        first = [set(short_order(60, 20, 3, seed, 0, True).tolist()) for seed in range(10)]
        assert len(set(map(frozenset, first))) == 10
        assert len(set.union(*first)) > 40  # All 60 but one, on average.

    @_many
    @given(st.integers(1, 200), REPEATS, WORLDS)
    def test_length_is_that_of_the_data_set(self, size, num_repeats, world_size):
        layout = Layout(num_repeats, 'rank', 0, world_size)
        samples = count_units(size, layout, 'v1', True) * num_repeats
        unit = num_repeats * world_size
        assert samples % unit == 0 and 0 <= samples - size < unit


def _reference_kinds(count, share, row):
    """Which of ``count`` units are groups: the n-th row is one if n * share passes an
    integer."""
    rows = [math.floor((n + 1) * share) > math.floor(n * share) for n in range(count // row + 1)]
    return [rows[unit // row] for unit in range(count)]


class TestPartlyRepeated:
    """``repeat_fraction``: units that are groups, among units of different sources."""

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SHARES)
    def test_positions_match_a_naive_deal(self, units, num_repeats, world_size, placement, share):
        row = world_size if placement == 'rank' else 1
        following, sequence = itertools.count(), []
        for is_group in _reference_kinds(units, share, row):
            sequence.append(
                [next(following)] * num_repeats
                if is_group
                else [next(following) for _ in range(num_repeats)]
            )
        if placement == 'spread':
            sequence = [[sample] for unit in sequence for sample in unit]
        for rank in range(world_size):
            layout = Layout(num_repeats, placement, rank, world_size, float(share))
            samples = np.arange(count_samples(units, layout))
            expected = list(itertools.chain(*sequence[rank::world_size]))
            assert sources_of_samples(samples, layout).tolist() == expected

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SHARES, SEEDS, EPOCHS)
    def test_full_epochs_hold_every_source(
        self, size, num_repeats, world_size, placement, share, seed, epoch
    ):
        streams = [
            _epoch(
                size,
                Layout(num_repeats, placement, rank, world_size, float(share)),
                seed=seed,
                epoch=epoch,
            )
            for rank in range(world_size)
        ]
        assert set(itertools.chain(*streams)) == set(range(size))
        assert len(set(map(len, streams))) == 1

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SHARES, SEEDS, EPOCHS, st.integers(0, 9))
    def test_v1_draws_sources_without_replacement_in_a_pass(
        self, size, num_repeats, world_size, placement, share, seed, number, start
    ):
        draws = Counter()
        for step in range(num_repeats):
            now = start + number * num_repeats + step
            layouts = [
                Layout(num_repeats, placement, rank, world_size, float(share))
                for rank in range(world_size)
            ]
            streams = [
                [
                    source
                    for chunk in epoch_chunks(size, layout, 'v1', seed, now, True, True, start)
                    for source in chunk.tolist()
                ]
                for layout in layouts
            ]
            assert len(set(map(len, streams))) == 1
            units = count_units(size, layouts[0], 'v1', True)
            kinds = _reference_kinds(units, share, world_size if placement == 'rank' else 1)
            # A group shows its source num_repeats times, for one draw.
            grouped = Counter()
            if placement == 'rank':
                for rank, stream in enumerate(streams):
                    own = zip(
                        kinds[rank::world_size], np.reshape(stream, (-1, num_repeats)).tolist()
                    )
                    for is_group, unit in own:
                        assert not is_group or len(set(unit)) == 1
                        grouped.update(unit[:1] if is_group else unit)
                draws.update(grouped)
            total = sum(map(len, streams))
            assert total == num_repeats * units
        if placement == 'rank':
            counts = [draws[source] for source in range(size)]
            assert max(counts) - min(counts) <= 1

    def test_by_hand(self):
        assert _epoch(6, Layout(2, repeat_fraction=0.5), 'v1', shuffle=False) == [0, 1, 2, 2, 3, 4]
        assert _epoch(6, Layout(2, repeat_fraction=0.5), 'full', shuffle=False) == [
            0,
            1,
            2,
            2,
            3,
            4,
            5,
            5,
        ]

    def test_all_ranks_get_equally_many_groups(self):
        for rank in range(2):
            stream = _epoch(40, Layout(2, 'rank', rank, 2, 0.5), 'v1')
            units = np.reshape(stream, (-1, 2))
            assert (units[:, 0] == units[:, 1]).tolist() == [False, True] * 5

    @_many
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SEEDS, st.integers(1, 9))
    def test_epochs_before_the_start_hold_every_source(
        self, size, num_repeats, world_size, placement, seed, start
    ):
        orders = []
        for epoch in range(start):
            streams = [
                [
                    source
                    for chunk in epoch_chunks(size, layout, 'v1', seed, epoch, True, True, start)
                    for source in chunk.tolist()
                ]
                for layout in (
                    Layout(num_repeats, placement, rank, world_size) for rank in range(world_size)
                )
            ]
            counts = Counter(itertools.chain(*streams))
            assert set(counts) == set(range(size))
            assert max(counts.values()) - min(counts.values()) <= 1
            orders.append(streams)
        assert size < 8 or all(first != second for first, second in itertools.pairwise(orders))

    def test_repetition_that_starts_later(self):
        layout = Layout(2)
        epochs = [
            [
                source
                for chunk in epoch_chunks(6, layout, 'v1', 0, epoch, False, True, 2)
                for source in chunk.tolist()
            ]
            for epoch in range(4)
        ]
        assert epochs == [
            [0, 1, 2, 3, 4, 5],
            [0, 1, 2, 3, 4, 5],
            [0, 0, 1, 1, 2, 2],
            [3, 3, 4, 4, 5, 5],
        ]

    @pytest.mark.parametrize(
        'start, mode, found',
        [(1, 'full', "start_epoch=1 .*mode='v1'"), (-1, 'v1', 'start_epoch=-1')],
    )
    def test_start_that_does_not_fit(self, start, mode, found):
        with pytest.raises(ValueError, match=found):
            epoch_chunks(6, Layout(2), mode, 0, 0, True, True, start)

    @pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
    def test_share_out_of_range(self, share):
        with pytest.raises(ValueError, match='repeat_fraction='):
            Layout(2, repeat_fraction=share)


class TestEndless:
    @staticmethod
    def _take(count, size, layout, seed=0, shuffle=True, start=0):
        chunks = endless_chunks(size, layout, seed, shuffle, start)
        samples = itertools.chain.from_iterable(c.tolist() for c in chunks)
        return list(itertools.islice(samples, count))

    @_some
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, SEEDS, SHUFFLES)
    def test_ranks_partition_the_passes(
        self, size, num_repeats, world_size, placement, seed, shuffle
    ):
        passes = [shuffled_order(size, seed, e, shuffle) for e in range(3)]
        expected = _reference_deal(
            np.concatenate(passes).tolist(), num_repeats, placement, world_size
        )
        for rank in range(world_size):
            layout = Layout(num_repeats, placement, rank, world_size)
            found = self._take(len(expected[rank]), size, layout, seed, shuffle)
            assert found == expected[rank]

    @_some
    @given(SIZES, REPEATS, WORLDS, PLACEMENTS, st.integers(0, 300))
    def test_start_leaves_out_samples(self, size, num_repeats, world_size, placement, start):
        layout = Layout(num_repeats, placement, world_size - 1, world_size)
        whole = self._take(start + 20, size, layout)
        assert self._take(20, size, layout, start=start) == whole[start:]

    def test_far_start_builds_one_pass(self, monkeypatch):
        built = []
        build = shuffled_order

        def spy(num_sources, seed, epoch, shuffle):
            built.append(epoch)
            return build(num_sources, seed, epoch, shuffle)

        monkeypatch.setattr(replicas, 'shuffled_order', spy)
        self._take(10, 10, Layout(2), start=20 * 12345)
        assert built == [12345]


class TestChecks:
    @pytest.mark.parametrize('batch_size,num_repeats', [(3, 3), (12, 4)])
    def test_fitting_batch_size(self, batch_size, num_repeats):
        check_batch_size(batch_size, num_repeats)

    @pytest.mark.parametrize(
        'batch_size,num_repeats,hint',
        [(7, 3, '6 or 9'), (8, 3, '6 or 9'), (2, 3, '3'), (130, 4, '128 or 132')],
    )
    def test_other_batch_size(self, batch_size, num_repeats, hint):
        with pytest.raises(ValueError) as error:
            check_batch_size(batch_size, num_repeats)
        message = str(error.value)
        assert f'batch_size={batch_size} ' in message
        assert f'num_repeats={num_repeats}:' in message
        assert f'`train_dataloader.batch_size` to {hint},' in message
        assert 'sampler.num_repeats`' in message

    def test_empty_data_set(self):
        check_num_sources(1)
        with pytest.raises(ValueError, match='data set is empty'):
            check_num_sources(0)


class TestWholeGroups:
    """Whether a batch cuts groups apart."""

    @_many
    @given(
        SIZES,
        st.integers(2, 6),
        st.integers(1, 20),
        st.sampled_from(replicas.MODES),
        SEEDS,
        EPOCHS,
        st.booleans(),
    )
    def test_batches_of_a_stream(self, size, num_repeats, batch_size, mode, seed, epoch, is_known):
        stream = _epoch(size, Layout(num_repeats), mode, seed, epoch)
        told = num_repeats if is_known else None
        for start in range(0, len(stream), batch_size):
            batch = stream[start : start + batch_size]
            groups = Counter(batch)
            if all(count % num_repeats == 0 for count in groups.values()):
                assert holds_whole_groups(batch, num_repeats, False)
            elif is_known or len(set(groups.values())) > 1 or len(groups) == len(batch):
                assert not holds_whole_groups(batch, told, False)

    @pytest.mark.parametrize(
        'num_repeats, batch_size', [(2, 3), (3, 4), (3, 5), (4, 6), (8, 12), (4, 2), (2, 1)]
    )
    def test_no_batch_of_another_size_passes(self, num_repeats, batch_size):
        stream = _epoch(60, Layout(num_repeats))
        for start in range(0, len(stream) - batch_size, batch_size):
            assert not holds_whole_groups(stream[start : start + batch_size], num_repeats, False)

    @_many
    @given(SIZES, st.integers(2, 6), st.integers(1, 4), SHARES, SEEDS, EPOCHS)
    def test_batches_that_are_partly_repeated(
        self, size, num_repeats, num_units, share, seed, epoch
    ):
        layout = Layout(num_repeats, repeat_fraction=float(share))
        stream = _epoch(size, layout, 'v1', seed, epoch)
        batch = stream[: num_units * num_repeats]
        if len(set(stream)) < size:  # no source is in two units
            has_group = max(Counter(batch).values()) > 1
            assert holds_whole_groups(batch, num_repeats, True) == has_group

    @pytest.mark.parametrize(
        'source_ids, num_repeats, partly, expected',
        [
            ([], 3, False, True),
            ([], 3, True, True),
            ([], None, False, True),
            ([5, 5, 5, 5, 5, 5], 3, False, True),  # where two passes meet
            ([5, 5, 6, 6, 6, 6], None, False, False),
            ([5, 5, 6, 7], None, True, True),
            ([5, 6, 7, 8], None, True, False),
            ([5, 5, 6, 7], 2, True, True),
            ([6, 5, 5, 7], 2, True, False),  # regrouped
            ([5, 5, 6, 7], 4, True, False),
        ],
    )
    def test_by_hand(self, source_ids, num_repeats, partly, expected):
        assert holds_whole_groups(source_ids, num_repeats, partly) is expected
