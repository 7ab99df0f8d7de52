"""Where boxes come from, against lists of one record a box, and how rebuilt boxes are matched."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_mm.core.provenance import Provenance, match_rows

ROWS = [[5.0, 8, 30, 28], [44, 6, 72, 34], [20, 36, 58, 55]]
HOMOGRAPHY = np.array([[1.1, 0.2, 5], [-0.1, 0.9, 3], [1e-3, 0, 1]])


def started(count=3, image_id=7):
    rows = np.random.default_rng(count).uniform(0, 50, (count, 4)).astype(np.float32)
    return Provenance.start(torch.from_numpy(rows), image_id)


class NaiveProvenance:
    """A list of (source id, source box, matrix); one image matrix beside it."""

    def __init__(self, rows, image_matrix, image_id):
        self.rows, self.image_matrix, self.image_id = rows, image_matrix, image_id

    @classmethod
    def of(cls, provenance):
        rows = [
            (tuple(ids), tuple(box), matrix)
            for ids, box, matrix in zip(
                provenance.source_ids.tolist(),
                provenance.source_boxes.tolist(),
                provenance.matrices,
            )
        ]
        return cls(rows, provenance.image_matrix, provenance.image_id)

    def moved(self, matrix):
        rows = [(ids, box, matrix @ own) for ids, box, own in self.rows]
        image = None if self.image_matrix is None else matrix @ self.image_matrix
        return NaiveProvenance(rows, image, self.image_id)

    def picked(self, places):
        return NaiveProvenance([self.rows[i] for i in places], self.image_matrix, self.image_id)

    def joined(self, other):
        agree = (
            self.image_id == other.image_id
            and self.image_matrix is not None
            and other.image_matrix is not None
            and (self.image_matrix == other.image_matrix).all()
        )
        return NaiveProvenance(
            self.rows + other.rows, self.image_matrix if agree else None, self.image_id
        )

    def assert_equals(self, provenance):
        found = NaiveProvenance.of(provenance)
        assert [row[:2] for row in found.rows] == [row[:2] for row in self.rows]
        for (*_, mine), (*_, theirs) in zip(found.rows, self.rows):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        assert (found.image_matrix is None) == (self.image_matrix is None)
        if self.image_matrix is not None:
            np.testing.assert_allclose(found.image_matrix, self.image_matrix, rtol=1e-12)
        assert found.image_id == self.image_id and len(provenance) == len(self.rows)


steps = st.lists(
    st.tuples(st.just('move'), st.integers(0, 99))
    | st.tuples(st.just('pick'), st.lists(st.integers(0, 99), max_size=5))
    | st.tuples(st.just('join'), st.sampled_from([7, 9]))
    | st.tuples(st.just('join self'), st.none()),
    max_size=6,
)


@given(st.integers(0, 4), steps)
def test_any_chain_equals_the_naive_twin(count, chain):
    ours, naive = started(count), NaiveProvenance.of(started(count))
    for kind, value in chain:
        if kind == 'move':
            matrix = np.random.default_rng(value).uniform(-2, 2, (3, 3))
            ours, naive = ours.moved(matrix), naive.moved(matrix)
        elif kind == 'pick':
            places = [place % len(ours) for place in value] if len(ours) else []
            index = np.array(places, dtype=np.int64)
            ours, naive = ours[index], naive.picked(places)
        else:
            other = ours if kind == 'join self' else started(2, value)
            naive = naive.joined(NaiveProvenance.of(other))
            ours = Provenance.cat([ours, other])
        naive.assert_equals(ours)


@given(st.lists(st.booleans(), max_size=5))
def test_overlaid_rows_are_those_of_the_other(marks):
    mine, theirs = started(len(marks)), started(sum(marks), image_id=9).moved(HOMOGRAPHY)
    others = iter(NaiveProvenance.of(theirs).rows)
    rows = [
        next(others) if mark else own for mark, own in zip(marks, NaiveProvenance.of(mine).rows)
    ]
    found = mine.overlaid(np.array(marks, dtype=bool), theirs)
    NaiveProvenance(rows, mine.image_matrix, theirs.image_id).assert_equals(found)


def test_one_matrix_for_each_box_leaves_the_image():
    matrices = np.random.default_rng(0).uniform(-2, 2, (3, 3, 3))
    provenance = started().moved(HOMOGRAPHY)
    found = provenance.moved_each(matrices)
    for own, matrix in zip(found.matrices, matrices):
        np.testing.assert_allclose(own, matrix @ HOMOGRAPHY)
    np.testing.assert_array_equal(found.image_matrix, provenance.image_matrix)


def test_start():
    provenance = Provenance.start(torch.tensor(ROWS), 7)
    assert provenance.source_ids.dtype == np.int64
    assert provenance.source_ids.tolist() == [[7, 0], [7, 1], [7, 2]]
    assert provenance.source_boxes.dtype == provenance.matrices.dtype == np.float64
    assert len(provenance) == 3 and provenance.image_id == 7


def test_start_where_annotations_were_left_out():
    provenance = Provenance.start(torch.tensor(ROWS), 7, np.array([0, 3, 4]))
    assert provenance.source_ids.tolist() == [[7, 0], [7, 3], [7, 4]]


def test_start_without_boxes():
    provenance = Provenance.start(torch.zeros(0, 4), 7)
    assert provenance.source_ids.shape == (0, 2) and provenance.matrices.shape == (0, 3, 3)


def test_moving_leaves_the_provenance_before():
    provenance = Provenance.start(torch.tensor(ROWS), 7)
    provenance.moved(HOMOGRAPHY)
    provenance.with_unknown_image()
    np.testing.assert_array_equal(provenance.image_matrix, np.eye(3))
    np.testing.assert_array_equal(provenance.matrices, np.tile(np.eye(3), (3, 1, 1)))


def test_an_unknown_image_stays_unknown():
    provenance = Provenance.start(torch.tensor(ROWS), 7).with_unknown_image()
    assert provenance.moved(HOMOGRAPHY).image_matrix is None


def naive_rows(before, after):
    """The one increasing way to find the rows of ``after`` in ``before``, or None."""
    ways = [
        list(rows)
        for rows in itertools.combinations(range(len(before)), len(after))
        if all(np.abs(before[row] - box).max() <= 0.01 for row, box in zip(rows, after))
    ]
    return ways[0] if len(ways) == 1 else None


@st.composite
def rebuilt(draw):
    """Boxes of few different numbers, and some of them again, perhaps in another order."""
    before = draw(st.lists(st.tuples(*[st.integers(0, 2)] * 4), max_size=6))
    places = draw(st.lists(st.integers(0, 5), max_size=6))
    after = [before[place] for place in places if place < len(before)]
    if draw(st.booleans()):
        kept = draw(st.sets(st.sampled_from(before))) if before else set()
        after = [row for row in before if row in kept]
    if draw(st.booleans()):
        after += draw(st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=1))
    return (np.array(rows, dtype=np.float32).reshape(-1, 4) for rows in (before, after))


@given(rebuilt(), st.floats(0, 0.009), st.floats(0, 1))
def test_match_rows_equals_the_naive_twin(pair, noise, shift):
    before, after = (boxes.astype(np.float64) + shift for boxes in pair)
    found, expected = match_rows(before, after + noise), naive_rows(before, after + noise)
    assert (found is None) == (expected is None)
    assert found is None or found.tolist() == expected


@pytest.mark.parametrize('keep', [[], [0], [1], [0, 2], [0, 1, 2]])
def test_kept_rows_are_found(keep):
    assert match_rows(np.array(ROWS), np.array(ROWS)[keep].reshape(-1, 4)).tolist() == keep


@given(st.integers(0, 2**32 - 1))
def test_boxes_that_went_through_shares_of_the_image_are_found(seed):
    """What albumentations does to the numbers, in single precision."""
    rng, size = np.random.default_rng(seed), np.float32([1333, 800, 1333, 800])
    first = rng.uniform(0, 700, (60, 2))
    before = np.hstack([first, first + rng.uniform(5, 90, (60, 2))]).astype(np.float32)
    kept = np.flatnonzero(rng.random(60) < 0.7)
    assert match_rows(before, before[kept] / size * size).tolist() == kept.tolist()


def test_numbers_on_both_sides_of_a_rounding_are_the_same():
    before = np.array([[10.00499, 5, 20, 20], [30, 5, 40.005, 20]])
    assert match_rows(before, before + [[3e-5, 0, 0, 0], [0, 0, -3e-5, 0]]).tolist() == [0, 1]
