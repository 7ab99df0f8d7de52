"""Checks of annotated boxes and masks against naive twins and pycocotools."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from lt_mm.core.annotations import LARGEST_COORDINATE, box_fault, decompressed_runs, mask_fault
from tests import reference

NAN, INF = math.nan, math.inf
SHAPE = (48, 64)

numbers = st.floats(-100, 200) | st.sampled_from([0.0, 48.0, 64.0, NAN, INF, -INF, 1e30, -1e7])


def naive_is_usable(box, shape):
    """Whether something of a box is left inside of the image."""
    finite = all(math.isfinite(number) and abs(number) <= 2**20 for number in box)
    return finite and reference.box_area(reference.clip_box(box, shape)) > 0


@given(st.lists(numbers, min_size=4, max_size=4))
@example([0.0, 0.0, 64.0, 48.0])
@example([64.0, 0.0, 70.0, 48.0])
@example([-5.0, -5.0, 0.0, 5.0])
def test_a_box_is_usable_where_a_part_of_it_is_left(box):
    for given_box in (box, tuple(box), np.array(box)):
        fault = box_fault(given_box, SHAPE)
        assert (fault is None) == naive_is_usable(box, SHAPE)
        assert fault is None or str(np.array(box).tolist()) in fault


@pytest.mark.parametrize(
    'box, words',
    [
        ([NAN, 1, 5, 5], 'the box [nan, 1.0, 5.0, 5.0] is not finite'),
        ([0, 0, 5, INF], 'is not finite'),
        ([0, 0, 2 * LARGEST_COORDINATE, 5], 'is larger than any image'),
        ([5, 5, 5, 9], 'has no area'),
        ([30, 30, 5, 5], 'has no area'),
        ([500, 5, 510, 9], 'lies outside the image of 64 x 48 pixels'),
        ([1, 2, 3], 'the box [1, 2, 3] is not four numbers'),
        ([1, 2, 3, 4, 5], 'is not four numbers'),
        (None, 'the box None is not four numbers'),
        ('text', "the box 'text' is not four numbers"),
        ([1, 2, 3, 'x'], 'is not four numbers'),
        (['1', '2', '3', '4'], 'is not four numbers'),
        ([1, 2, 3, 10**400], 'is not four numbers'),
        ({}, 'the box {} is not four numbers'),
    ],
)
def test_words_for_boxes(box, words):
    assert words in box_fault(box, SHAPE)


def naive_runs(mask):
    """Lengths of the runs of a mask, column by column; the first run is of zeros."""
    runs, value = [0], 0
    for pixel in mask.T.flatten():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 200))
    density = draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 99))).random((height, width)) < density


@given(masks())
@example(np.ones((200, 300), bool))  # runs that take several characters
def test_runs_are_those_that_pycocotools_wrote(mask):
    counts = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))['counts'].decode()
    assert decompressed_runs(counts) == naive_runs(mask)
    for form in (counts, naive_runs(mask)):
        fault = mask_fault(dict(size=list(mask.shape), counts=form), mask.shape)
        assert fault == (None if mask.any() else 'its mask has no pixel')


@given(masks(), st.integers(-3, 3))
def test_runs_have_to_cover_the_image(mask, change):
    height, width = mask.shape
    runs = naive_runs(mask)
    runs[-1] += change
    usable = change == 0 and mask.any()
    assert (mask_fault(dict(size=[height, width], counts=runs), (height, width)) is None) == usable
    words = mask_fault(dict(size=[height, width], counts=runs), (height, width + 1))
    assert words == f'its mask is of {width} x {height} pixels, the image of {width + 1} x {height}'


@pytest.mark.parametrize(
    'mask, words',
    [
        (None, 'it has no mask'),
        ([[0, 0, 5, 0, 5, NAN]], 'a polygon of its mask is not finite'),
        ([[0, 0, 5, 0, 5, 5], [0, 0, 5, 0, 5, 1e12]], 'larger than any image'),
        ([5, 5, 9, 5, 9, 9], 'not a list of polygons'),
        ([['a', 'b']], 'not a list of polygons'),
        (dict(size=[48, 64], counts=[9, 9]), 'the runs of its mask cover 18 of 3072 pixels'),
        (dict(size=[48, 64], counts=[-9, 9, 3072]), 'the runs of its mask cover 3072 of 3072'),
        (dict(size=[48, 64], counts=''), 'cover 0 of 3072 pixels'),
        ([], 'it has no mask'),
        ([[0, 0, 5, 0, 5, 5]], None),
        ([[0, 0, 5, 0, 5, 5], [0, 0, 5, 0]], None),
        ([[0, 0, 5, 0], []], 'no polygon of its mask has three points'),
        ([[0, 0, 5, 0, 5, 5, 9]], 'a polygon of its mask has 7 numbers'),
        ([[0, 0, 5, 0, 5, 10**400]], 'not a list of polygons'),
        (dict(size=[48, 64]), 'the counts of its mask are None'),
        (dict(counts=[9]), 'the size of its mask is None'),
        (dict(size=[48], counts=[9]), 'the size of its mask is [48]'),
        (dict(size='text', counts=[9]), "the size of its mask is 'text'"),
        (dict(size=[48, 64], counts=b'bytes'), "the counts of its mask are b'bytes'"),
        (dict(size=[48, 64], counts=[9, None]), 'the counts of its mask are [9, None]'),
        (dict(size=[48, 64], counts=[1.5, 3070.5]), 'expected whole numbers'),
        (dict(size=[48, 64], counts=[3072]), 'its mask has no pixel'),
        (dict(size=[48, 64], counts=[3000, 0, 72]), 'its mask has no pixel'),
        (dict(size=[48, 64], counts='\ud800'), 'not compressed RLE: character 0'),
        (dict(size=[48, 64], counts='P' * 10**5), 'not compressed RLE: character 7'),
        (dict(size=[48, 64], counts='0P'), 'its last number does not end'),
        (5, 'its mask is 5; expected polygons or RLE'),
        ('text', "its mask is 'text'"),
    ],
)
def test_words_for_masks(mask, words):
    fault = mask_fault(mask, SHAPE)
    assert fault is None if words is None else words in fault
