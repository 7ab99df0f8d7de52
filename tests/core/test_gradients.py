"""Norm ratio and cosine of two gradients, against numpy in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_mm.core.gradients import compare_gradients

SHAPES = [(3, 4), (5,), (2, 1, 3), ()]


def gradients(seed, absent=()):
    """Float32 tensors, None in some places, and the same as one float64 vector."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    flat = [
        np.zeros(array.shape) if place in absent else array for place, array in enumerate(arrays)
    ]
    return (
        [None if place in absent else torch.as_tensor(array) for place, array in enumerate(arrays)],
        np.concatenate([np.ravel(array).astype(np.float64) for array in flat]),
    )


@given(
    seed=st.integers(0, 10_000),
    absent=st.sets(st.integers(0, 3), max_size=3),
    other=st.sets(st.integers(0, 3), max_size=3),
)
def test_equals_numpy_on_one_long_vector(seed, absent, other):
    (first, a), (second, b) = gradients(seed, absent), gradients(seed + 1, other)
    found = compare_gradients(first, second)
    norm, reference = np.linalg.norm(a), np.linalg.norm(b)
    assert found.ratio == pytest.approx(norm / reference, rel=1e-9)
    assert found.cosine == pytest.approx(a @ b / (norm * reference), rel=1e-9, abs=1e-12)


def test_values_that_are_known():
    axis, slope = [torch.tensor([2.0, 0.0])], [torch.tensor([1.0, 1.0])]
    assert compare_gradients(axis, axis) == (1, 1)
    assert compare_gradients([-3 * axis[0]], axis) == (3, -1)
    assert compare_gradients(axis, slope) == pytest.approx((2**0.5, 0.5**0.5))
    tiny = [torch.full((4,), 1e-30)]  # the squares are no float32
    assert compare_gradients(tiny, tiny) == pytest.approx((1, 1))


def test_no_gradient():
    something = [torch.ones(2), None]
    for nothing in ([None, None], [torch.zeros(2), None]):
        ratio, cosine = compare_gradients(nothing, something)
        assert ratio == 0 and math.isnan(cosine)
        with pytest.raises(ValueError, match='second gradient is zero'):
            compare_gradients(something, nothing)
    with pytest.raises(ValueError, match='2 and 1 gradients'):
        compare_gradients(something, something[:1])
