"""Extreme and broken matrices and predictions: no NaN, and finite gradients for pairs.

Matrices here are anything that fits into nine floats. Predictions are finite, of any size
that their precision holds.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lt_mm.core import consistency, geometry, pairing

DTYPES = [torch.float16, torch.float32, torch.float64]
NUM = 4  # predictions in a test; the first two are a group, the others another

_many = settings(max_examples=50, deadline=None)
_some = settings(max_examples=25, deadline=None)


def _signed(low, high):
    """Numbers of every order of magnitude between two powers of ten."""
    return st.tuples(st.sampled_from([-1, 1]), st.floats(low, high)).map(
        lambda pair: pair[0] * 10.0 ** pair[1]
    )


magnitudes = _signed(-30, 30)
broken = st.sampled_from([math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324, 1e-300, 1e155])
entries = magnitudes | broken | st.sampled_from([0.0, 1.0, -1.0])
any_matrices = st.lists(entries, min_size=9, max_size=9).map(
    lambda numbers: np.array(numbers).reshape(3, 3)
)
scaled = st.tuples(magnitudes, magnitudes, magnitudes, magnitudes).map(
    lambda v: np.array([[v[0], 0, v[2]], [0, v[1], v[3]], [0, 0, 1]])
)
singular = st.tuples(
    st.lists(magnitudes, min_size=3, max_size=3), st.lists(magnitudes, min_size=3, max_size=3)
).map(lambda pair: np.outer(*pair))
nearly_singular = st.tuples(singular, st.floats(-18, -8)).map(
    lambda pair: pair[0] + 10.0 ** pair[1] * np.eye(3)
)
ordinary = st.tuples(st.floats(0.1, 9), st.floats(-99, 99)).map(
    lambda v: np.array([[v[0], 0, v[1]], [0, v[0], 0], [0, 0, 1]])
)
matrices = any_matrices | scaled | singular | nearly_singular | ordinary


def numbers_of(dtype):
    """Finite numbers of every magnitude of a precision."""
    top = math.floor(math.log10(torch.finfo(dtype).max))
    largest = torch.finfo(dtype).max
    return _signed(-8, min(top, 300)) | st.sampled_from([0.0, largest])


@st.composite
def predictions(draw, width):
    """(NUM, width) finite numbers of a drawn precision."""
    dtype = draw(st.sampled_from(DTYPES))
    size = NUM * width
    numbers = draw(st.lists(numbers_of(dtype), min_size=size, max_size=size))
    limit = torch.finfo(dtype).max
    values = torch.tensor(numbers, dtype=torch.float64).clamp(-limit, limit).to(dtype)
    return values.view(NUM, width)


def some_matrices():
    return st.lists(matrices, min_size=NUM, max_size=NUM).map(
        lambda matrices: torch.from_numpy(np.stack(matrices))
    )


def assert_finite_gradient(output, leaf):
    """Of everything that comes out: its gradient has no NaN, and no infinity."""
    output.sum().backward()
    assert leaf.grad.isfinite().all()


class TestMatrices:
    @_many
    @given(some_matrices(), st.sampled_from([torch.float32, torch.float64]))
    def test_inverse(self, matrices, dtype):
        matrices = matrices.to(dtype)
        inverse, invertible = geometry.invert(matrices), geometry.is_invertible(matrices)
        assert inverse.isfinite().all() and inverse.dtype == torch.float64
        for matrix, found, usable in zip(matrices, inverse, invertible):
            if not usable:
                assert found.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
            assert found.abs().max() <= 1e15
            if not matrix.isfinite().all():
                assert not usable

    @_many
    @given(some_matrices())
    def test_axis_aligned(self, matrices):
        aligned = geometry.is_axis_aligned(matrices)
        assert not (aligned & ~matrices.isfinite().flatten(1).all(dim=1)).any()

    @pytest.mark.parametrize('scale', [1e-30, 1e-15, 1e-6, 1e-5, 1.0, 1e5, 1e15, 1e30])
    def test_which_scales_are_invertible(self, scale):
        matrix = torch.from_numpy(geometry.scale_matrix(scale, scale))
        assert geometry.is_invertible(matrix).item() is (scale > 1e-6)

    @pytest.mark.parametrize(
        'build',
        [
            lambda bad: geometry.translation_matrix(bad, 0),
            lambda bad: geometry.translation_matrix(0, bad),
            lambda bad: geometry.scale_matrix(bad, 1),
            lambda bad: geometry.scale_matrix(1, bad),
            lambda bad: geometry.rotation_matrix((bad, 0), 3),
            lambda bad: geometry.rotation_matrix((0, 0), bad),
            lambda bad: geometry.flip_matrix((bad, 4), 'vertical'),
            lambda bad: geometry.scale_about_matrices(np.array([[0, bad]]), 2, 2),
            lambda bad: geometry.scale_about_matrices(np.zeros((1, 2)), bad, 2),
        ],
    )
    @pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e101])
    def test_builders_refuse_what_is_not_finite(self, build, bad):
        with pytest.raises(ValueError, match='gives no matrix; expected finite numbers'):
            build(bad)

    @_some
    @given(magnitudes, magnitudes, st.floats(-1e6, 1e6))
    def test_builders_are_finite(self, x, y, angle):
        for matrix in (
            geometry.translation_matrix(x, y),
            geometry.scale_matrix(x, y),
            geometry.rotation_matrix((x, y), angle),
            geometry.flip_matrix((abs(x), abs(y)), 'diagonal'),
            geometry.scale_about_matrices(np.array([[x, y]]), y, x),
        ):
            assert np.isfinite(matrix).all()


class TestMaps:
    @_many
    @given(some_matrices(), predictions(4))
    def test_boxes(self, matrices, boxes):
        for move in (geometry.boxes_to_source, geometry.map_boxes):
            leaf = boxes.clone().requires_grad_()
            moved = move(leaf, matrices)
            assert moved.dtype == boxes.dtype and moved.isfinite().all()
            sides = moved[:, 2:] - moved[:, :2]
            assert sides.isfinite().all() and (sides >= 0).all()
            (0 * moved).sum().backward()  # what does not pair gets no gradient, not NaN
            assert leaf.grad.tolist() == [[0] * 4] * NUM

    @_many
    @given(some_matrices(), predictions(4))
    def test_boxes_of_workers(self, matrices, boxes):
        moved = geometry.move_boxes(boxes.double().numpy(), matrices.numpy())
        assert np.isfinite(moved).all() and (moved[:, 2:] >= moved[:, :2]).all()

    @_many
    @given(some_matrices(), predictions(4))
    def test_points(self, matrices, values):
        for move in (geometry.map_points, geometry.points_to_source):
            leaf = values.view(NUM, 2, 2).clone().requires_grad_()
            moved = move(leaf, matrices)
            assert moved.shape == leaf.shape and moved.isfinite().all()
            (0 * moved).sum().backward()
            assert not leaf.grad.any()

    @_some
    @given(some_matrices())
    def test_gradients_where_a_matrix_can_be_inverted(self, matrices):
        leaf = torch.tensor([[3.0, 4, 50, 60]] * NUM, requires_grad=True)
        assert_finite_gradient(geometry.boxes_to_source(leaf, matrices), leaf)

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_what_is_not_finite(self, dtype):
        """Infinity is far away; what is not a number is not made one."""
        points = torch.tensor([[math.inf, 1], [math.nan, 1]], dtype=dtype)
        moved = geometry.map_points(points, torch.eye(3, dtype=torch.float64))
        assert moved[0].tolist() == [min(torch.finfo(dtype).max / 2, 1e100), 1]
        assert moved[1].isnan().all()

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_empty(self, dtype):
        empty = torch.zeros(0, 3, 3, dtype=torch.float64)
        no_boxes = torch.zeros(0, 4, dtype=dtype)
        assert geometry.boxes_to_source(no_boxes, empty).shape == (0, 4)
        assert geometry.map_points(torch.zeros(0, 5, 2, dtype=dtype), empty).shape == (0, 5, 2)
        assert geometry.invert(empty).shape == (0, 3, 3)
        assert geometry.is_invertible(empty).shape == (0,)
        assert geometry.is_axis_aligned(empty).shape == (0,)
        rows = no_boxes.numpy().astype(np.float64)
        assert geometry.move_boxes(rows, empty.numpy()).shape == (0, 4)
        assert geometry.visible_fraction(no_boxes.numpy(), rows, (4, 4)).shape == (0,)
        values, inside = geometry.masks_to_source(
            torch.zeros(0, 7, 7, dtype=dtype), no_boxes, empty, no_boxes, 5
        )
        assert values.shape == inside.shape == (0, 5, 5)
        positions, sides = geometry.side_positions_to_source(
            torch.zeros(0, 2, dtype=dtype), torch.zeros(0, 3, dtype=dtype), empty
        )
        assert positions.shape == (0, 4, 3) and sides.shape == (0, 4)

    @_some
    @given(some_matrices(), predictions(4), predictions(4), predictions(9))
    def test_masks(self, matrices, rois, regions, logits):
        leaf = logits.view(NUM, 3, 3).clone().requires_grad_()
        values, inside = geometry.masks_to_source(leaf, rois, matrices, regions, 4)
        assert values.isfinite().all() and inside.dtype == torch.bool
        assert_finite_gradient(values, leaf)

    @_some
    @given(some_matrices(), predictions(2), predictions(3))
    def test_sides(self, matrices, centers, distances):
        positions, sides = geometry.side_positions_to_source(centers, distances, matrices)
        assert positions.isfinite().all()
        assert ((sides >= 0) & (sides < 4)).all()

    @_many
    @given(predictions(4), predictions(4), st.integers(1, 10**6), st.integers(1, 10**6))
    @example(torch.full((NUM, 4), math.nan), torch.ones(NUM, 4), 3, 3)
    @example(torch.ones(NUM, 4), torch.full((NUM, 4), math.nan), 3, 3)
    @example(torch.full((NUM, 4), math.inf), torch.full((NUM, 4), math.inf), 3, 3)
    def test_visibility(self, boxes, whole, height, width):
        fraction = geometry.visible_fraction(boxes.numpy(), whole.double().numpy(), (height, width))
        assert fraction.dtype == np.float32
        assert ((fraction >= 0) & (fraction <= 1)).all()


GROUPS = torch.tensor([0, 0, 1, 1])
LABELS = torch.zeros(NUM, dtype=torch.int64)


class TestPairing:
    @_many
    @given(predictions(4), predictions(4))
    def test_iou(self, boxes_a, boxes_b):
        iou = geometry.pairwise_iou(boxes_a, boxes_b)
        assert ((iou >= 0) & (iou <= 1)).all()
        rows, columns = pairing.greedy_iou_pairs(boxes_a, boxes_b, LABELS, LABELS)
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows)
        groups = pairing.greedy_iou_groups([boxes_a, boxes_b], [LABELS, LABELS])
        assert [len(own) for own in groups] == [NUM, NUM]
        assert min(own.min() for own in groups) == 0
        assert pairing.same_source_by_area(boxes_a, boxes_b).dtype == torch.bool

    @_some
    @given(predictions(4), predictions(4))
    def test_assignment(self, boxes, annotated):
        hulls = pairing.group_hulls(boxes, GROUPS)
        assert hulls.isfinite().all()
        rows = pairing.annotation_of_target(boxes, LABELS, annotated.to(boxes), LABELS)
        assert ((rows >= 0) & (rows < NUM)).all()
        distances = (boxes.double() - annotated.double()).norm(dim=1)
        nearest = pairing.nearest_in_each_replica(GROUPS, torch.arange(NUM), distances)
        assert nearest.tolist() == GROUPS.tolist()


def _classes(leaf, detach):
    return consistency.categorical_consistency(leaf, GROUPS, detach_mean=detach)


def _bernoullis(leaf, detach):
    return consistency.bernoulli_consistency(leaf, GROUPS, detach_mean=detach)


def _boxes(leaf, detach):
    return consistency.box_consistency(leaf, GROUPS, detach_mean=detach)


def _masks(leaf, detach):
    logits = leaf.view(NUM, 2, 2)
    return consistency.mask_consistency(
        logits, torch.ones_like(logits, dtype=torch.bool), GROUPS, detach_mean=detach
    )


class TestConsistency:
    @_many
    @given(predictions(4), st.booleans())
    @pytest.mark.parametrize('term', [_classes, _bernoullis, _boxes, _masks])
    def test_no_nan(self, term, values, detach):
        leaf = values.clone().requires_grad_()
        value = term(leaf, detach)
        assert value.isfinite()
        value.backward()
        assert not leaf.grad.isnan().any()
        if leaf.dtype != torch.float16:
            assert leaf.grad.isfinite().all()

    @_some
    @given(predictions(12), predictions(12), st.booleans())
    def test_sides(self, logits, positions, detach):
        leaf = logits.view(NUM, 4, 3).clone().requires_grad_()
        value = consistency.side_consistency(
            leaf, positions.view(NUM, 4, 3).double(), GROUPS, detach_mean=detach
        )
        assert value.isfinite()
        assert_finite_gradient(value, leaf)

    @pytest.mark.parametrize('place', [0, 6, 11])
    @pytest.mark.parametrize('largest', [1e30, 1e155, 1.7e308, -1.7e308])
    def test_sides_beyond_all_images(self, largest, place):
        """Differences and means of such positions are no numbers."""
        positions = torch.zeros(NUM, 12, dtype=torch.float64)
        positions[1, place] = largest
        leaf = torch.zeros(NUM, 4, 3, requires_grad=True)
        value = consistency.side_consistency(leaf, positions.view(NUM, 4, 3), GROUPS)
        assert value.isfinite()
        assert_finite_gradient(value, leaf)

    @_many
    @given(some_matrices(), predictions(4))
    def test_boxes_through_matrices(self, matrices, boxes):
        """As the heads use it: what a broken matrix moves is left out of the pairs."""
        usable = geometry.is_invertible(matrices)
        leaf = boxes.float().requires_grad_()
        restored = geometry.boxes_to_source(leaf, matrices)
        value = consistency.box_consistency(restored, torch.where(usable, GROUPS, pairing.UNPAIRED))
        assert value.isfinite()
        assert_finite_gradient(value, leaf)
        assert not leaf.grad[~usable].any()
