"""Matrices: builders, maps, inverses, and what happens where there is no inverse."""

import functools
import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes

from lt_mm.core import geometry
from tests import reference

SIZES = [(17, 11), (11, 17), (1, 1), (480, 640)]  # (height, width)
DIRECTIONS = ['horizontal', 'vertical', 'diagonal']

_many = settings(max_examples=150, deadline=None)
_some = settings(max_examples=50, deadline=None)

coordinates = st.floats(-500, 1500)
sides = st.floats(0, 800)
boxes = st.tuples(coordinates, coordinates, sides, sides).map(
    lambda v: [v[0], v[1], v[0] + v[2], v[1] + v[3]]
)
box_lists = st.lists(boxes, max_size=5)
translations = st.tuples(coordinates, coordinates).map(lambda v: geometry.translation_matrix(*v))
scales = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda v: geometry.scale_matrix(*v))
flips = st.tuples(st.integers(1, 900), st.integers(1, 900), st.sampled_from(DIRECTIONS)).map(
    lambda v: geometry.flip_matrix(v[:2], v[2])
)
quarter_turns = st.tuples(coordinates, coordinates, st.integers(-4, 4)).map(
    lambda v: geometry.rotation_matrix(v[:2], 90 * v[2])
)
rotations = st.tuples(coordinates, coordinates, st.floats(-360, 360)).map(
    lambda v: geometry.rotation_matrix(v[:2], v[2])
)
# Six factors within [0.3, 3]: pixels below 1e6, so float64 leaves 1e-10 px.
gentle_scales = st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(
    lambda v: geometry.scale_matrix(*v)
)
straight_matrices = st.lists(
    translations | gentle_scales | flips | quarter_turns, min_size=1, max_size=6
)
# Anything that is a float: zeros, denormals, 1e30.
wild_entries = st.floats(-1e30, 1e30) | st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e12])
wild_matrices = st.lists(wild_entries, min_size=9, max_size=9).map(
    lambda v: np.array(v).reshape(3, 3)
)


def _compose(matrices):
    total = np.eye(3)
    for matrix in matrices:
        total = matrix @ total
    return total


def _tensor(values, *shape):
    return torch.tensor(np.asarray(values, dtype=np.float64).reshape(shape))


def _boxes(*rows):
    return _tensor(rows, -1, 4)


def _perspective():
    return np.array([[1.1, 0.1, 5], [-0.2, 0.9, 3], [1e-4, -2e-4, 1]])


class TestBuilders:
    @pytest.mark.parametrize('direction', DIRECTIONS)
    @pytest.mark.parametrize('shape', SIZES)
    def test_flip_moves_points(self, shape, direction):
        moved = reference.move_point(3, 5, geometry.flip_matrix(shape, direction))
        assert moved == reference.flip_point(3, 5, shape, direction)

    @pytest.mark.parametrize('direction', DIRECTIONS)
    @pytest.mark.parametrize('shape', SIZES)
    def test_flip_swaps_the_edges_of_the_image(self, shape, direction):
        height, width = shape
        whole = np.array([0, 0, width, height])
        moved = reference.move_box(whole, geometry.flip_matrix(shape, direction))
        np.testing.assert_array_equal(moved, whole)

    @pytest.mark.parametrize('direction', ['horizontal', 'vertical'])
    def test_flip_equals_torchvision(self, direction):
        box = [[2.0, 3.0, 7.0, 11.0]]
        flip = dict(horizontal=tv.horizontal_flip, vertical=tv.vertical_flip)[direction]
        theirs = flip(BoundingBoxes(box, format='XYXY', canvas_size=(17, 11)))
        ours = reference.move_box(box[0], geometry.flip_matrix((17, 11), direction))
        np.testing.assert_allclose(ours, theirs[0].numpy())

    def test_flip_follows_the_pixels(self):
        image = np.arange(17 * 11).reshape(17, 11)
        matrix = geometry.flip_matrix(image.shape, 'horizontal')
        # The pixel in column 2 covers [2, 3].
        x1, _, x2, _ = reference.move_box([2, 0, 3, 1], matrix)
        np.testing.assert_array_equal(image[:, ::-1][:, int(x1) : int(x2)], image[:, 2:3])

    def test_flip_takes_the_shape_of_a_colour_image(self):
        np.testing.assert_array_equal(
            geometry.flip_matrix((17, 11, 3), 'horizontal'),
            geometry.flip_matrix((17, 11), 'horizontal'),
        )

    @pytest.mark.parametrize('direction', ['left', None, 'Horizontal'])
    def test_unknown_flip(self, direction):
        with pytest.raises(ValueError, match=f'{direction!r}.*vertical'):
            geometry.flip_matrix((4, 4), direction)

    def test_translation(self):
        matrix = geometry.translation_matrix(3, -2.5)
        assert reference.move_point(10, 20, matrix) == (13, 17.5)

    def test_scale(self):
        assert reference.move_point(10, 20, geometry.scale_matrix(2, 0.5)) == (20, 10)

    @pytest.mark.parametrize('angle', [0, 30, 90, -90, 180, 400, -17.3])
    @pytest.mark.parametrize('center', [(0, 0), (5.5, 8.5), (-3, 200)])
    def test_rotation(self, center, angle):
        matrix = geometry.rotation_matrix(center, angle)
        np.testing.assert_allclose(
            reference.move_point(7, 2, matrix),
            reference.rotate_point(7, 2, center, angle),
            atol=1e-9,
        )

    def test_rotation_equals_opencv(self):
        theirs = cv2.getRotationMatrix2D((5.5, 8.5), -33, 1)  # positive: other way round
        np.testing.assert_allclose(geometry.rotation_matrix((5.5, 8.5), 33)[:2], theirs)

    def test_rotation_is_clockwise_on_the_screen(self):
        # The point right of the centre goes below it.
        matrix = geometry.rotation_matrix((0, 0), 90)
        np.testing.assert_allclose(reference.move_point(1, 0, matrix), (0, 1), atol=1e-12)

    def test_scale_about_points(self):
        centers = np.array([[3.0, 4.0], [-10.0, 0.5]])
        matrices = geometry.scale_about_matrices(centers, 2, 0.25)
        for center, matrix in zip(centers, matrices):
            np.testing.assert_allclose(
                reference.move_point(7, 2, matrix),
                reference.scale_about_point(7, 2, center, 2, 0.25),
            )

    def test_scale_about_no_points(self):
        assert geometry.scale_about_matrices(np.zeros((0, 2)), 2, 3).shape == (0, 3, 3)

    @pytest.mark.parametrize(
        'matrix',
        [
            geometry.translation_matrix(1, 2),
            geometry.scale_matrix(1, 2),
            geometry.flip_matrix((3, 4), 'diagonal'),
            geometry.rotation_matrix((1, 2), 3),
            geometry.scale_about_matrices(np.zeros((1, 2), np.float32), 1, 2)[0],
        ],
    )
    def test_builders_give_float64(self, matrix):
        assert matrix.shape == (3, 3) and matrix.dtype == np.float64


class TestIsAxisAligned:
    @pytest.mark.parametrize(
        'matrix, expected',
        [
            (np.eye(3), True),
            (geometry.scale_matrix(1e-3, 1e3), True),
            (geometry.scale_matrix(-2, 5), True),
            (geometry.translation_matrix(1e6, -1e6), True),
            (geometry.flip_matrix((17, 11), 'diagonal'), True),
            (geometry.rotation_matrix((5, 8), 90), True),
            (geometry.rotation_matrix((5, 8), 180), True),
            (geometry.rotation_matrix((5, 8), -270), True),
            (geometry.rotation_matrix((5, 8), 45), False),
            (geometry.rotation_matrix((5, 8), 0.01), False),
            (geometry.rotation_matrix((5, 8), 90.01), False),
            (geometry.rotation_matrix((5, 8), 1e-6), True),
            ([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]], False),
            ([[1, 0, 0], [0.01, 1, 0], [0, 0, 1]], False),
            ([[0, 1, 0], [1, 0.01, 0], [0, 0, 1]], False),
            ([[1, 1e-9, 0], [1e-9, 1, 0], [0, 0, 1]], True),
            # A shear of a squeezed axis, small beside the other axis.
            ([[1000, 0, 0], [5e-4, 1e-4, 0], [0, 0, 1]], False),
            ([[0, 1000, 0], [1e-4, 5e-4, 0], [0, 0, 1]], False),
            ([[1, 0, 0], [0, 1, 0], [1e-4, 0, 1]], False),
            ([[1, 0, 0], [0, 1, 0], [0, 1e-4, 1]], False),
            ([[1, 0, 0], [0, 1, 0], [1e-12, 0, 1]], True),
            ([[5, 0, 0], [0, 5, 0], [0, 0, 5]], True),
        ],
    )
    def test_by_hand(self, matrix, expected):
        assert geometry.is_axis_aligned(_tensor(matrix, 3, 3)).item() is expected

    @_many
    @given(straight_matrices)
    def test_chains_of_straight_matrices(self, chain):
        assert geometry.is_axis_aligned(_tensor(_compose(chain), 3, 3))

    @_many
    @given(straight_matrices, st.floats(1, 89), straight_matrices)
    def test_a_rotation_in_the_chain_is_seen(self, before, angle, after):
        # Uneven scales around a rotation can turn it into nearly nothing.
        total = _compose([*before, geometry.rotation_matrix((3, 4), angle), *after])
        seen = bool(geometry.is_axis_aligned(_tensor(total, 3, 3)))
        assert not seen or reference.keeps_boxes_straight(total)

    def test_batch(self):
        matrices = torch.eye(3).expand(2, 4, 3, 3)
        assert geometry.is_axis_aligned(matrices).shape == (2, 4)
        assert geometry.is_axis_aligned(torch.zeros(0, 3, 3)).shape == (0,)

    def test_float32_matrix_of_a_quarter_turn(self):
        turn = _tensor(geometry.rotation_matrix((5, 8), 90), 3, 3).float()
        assert geometry.is_axis_aligned(turn)

    def test_tolerance(self):
        matrix = _tensor([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]], 3, 3)
        assert geometry.is_axis_aligned(matrix, tolerance=0.1)


class TestMaps:
    @_many
    @given(box_lists, st.lists(rotations | scales | flips, min_size=1, max_size=3))
    def test_boxes_equal_the_reference(self, rows, chain):
        matrix = _compose(chain)
        matrices = np.tile(matrix, (len(rows), 1, 1))
        moved = geometry.map_boxes(_tensor(rows, -1, 4), _tensor(matrices, -1, 3, 3))
        expected = reference.move_boxes(rows, matrices)
        np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-9, atol=1e-6)

    def test_every_box_has_its_own_matrix(self):
        matrices = [
            geometry.translation_matrix(1, 2),
            geometry.rotation_matrix((0, 0), 30),
            _perspective(),
        ]
        rows = [[0, 0, 4, 4], [1, 2, 3, 4], [10, 20, 30, 50]]
        moved = geometry.map_boxes(_boxes(*rows), _tensor(matrices, 3, 3, 3))
        np.testing.assert_allclose(moved.numpy(), reference.move_boxes(rows, matrices))

    def test_perspective_equals_opencv(self):
        points = np.array([[0.0, 0], [17, 0], [3, 11], [120, 90]])
        theirs = cv2.perspectiveTransform(points[None], _perspective())[0]
        ours = geometry.map_points(torch.tensor(points), _tensor(_perspective(), 3, 3))
        np.testing.assert_allclose(ours.numpy(), theirs)

    def test_flipped_box_is_ordered(self):
        matrix = _tensor(geometry.flip_matrix((17, 11), 'diagonal'), 3, 3)
        moved = geometry.map_boxes(_boxes([1, 2, 4, 7]), matrix[None])
        assert moved.tolist() == [[7, 10, 10, 15]]

    @pytest.mark.parametrize('shape', [(), (1,), (5,), (0,), (2, 3), (2, 0)])
    def test_batch_shapes(self, shape):
        rows, matrices = torch.rand(*shape, 4), torch.eye(3).expand(*shape, 3, 3)
        for move in (geometry.map_boxes, geometry.boxes_to_source):
            assert move(rows, matrices).shape == (*shape, 4)
        points = torch.rand(*shape, 7, 2)
        for move in (geometry.map_points, geometry.points_to_source):
            torch.testing.assert_close(move(points, matrices), points)

    def test_one_matrix_for_many_boxes(self):
        matrix = _tensor(geometry.translation_matrix(2, 3), 3, 3)
        moved = geometry.map_boxes(torch.zeros(4, 4).double(), matrix)
        assert moved.tolist() == [[2, 3, 2, 3]] * 4

    @pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
    def test_keeps_the_dtype_of_the_boxes(self, dtype):
        matrix = _tensor(geometry.scale_matrix(2, 2), 1, 3, 3)
        moved = geometry.map_boxes(torch.ones(1, 4, dtype=dtype), matrix)
        assert moved.dtype == dtype and moved.tolist() == [[2, 2, 2, 2]]

    def test_computes_in_the_wider_dtype(self):
        # In float32 the sum of a far shift and its inverse loses the box.
        far = _tensor(geometry.translation_matrix(1e9, 0), 1, 3, 3)
        back = _tensor(geometry.translation_matrix(-1e9, 0), 1, 3, 3)
        box = torch.tensor([[1.25, 2, 3, 4]])
        assert torch.equal(geometry.map_boxes(box, back @ far), box)
        near = torch.tensor([[1.25, 2]])
        once = geometry.map_points(near.double(), far[0])
        assert torch.equal(geometry.points_to_source(once, far[0]).float(), near)

    def test_gradients(self):
        torch.manual_seed(0)
        rows = torch.tensor([[1.0, 2, 30, 40], [5, 6, 17, 11]]).double().requires_grad_()
        points = torch.rand(2, 3, 2).double().mul(50).requires_grad_()
        matrices = _tensor([_perspective(), geometry.rotation_matrix((3, 4), 25)], 2, 3, 3)
        for move, values in [
            (geometry.map_boxes, rows),
            (geometry.boxes_to_source, rows),
            (geometry.map_points, points),
            (geometry.points_to_source, points),
        ]:
            assert torch.autograd.gradcheck(functools.partial(move, matrices=matrices), (values,))

    def test_gradient_reaches_every_side(self):
        rows = torch.tensor([[1.0, 2, 30, 40]], requires_grad=True)
        matrix = _tensor(geometry.flip_matrix((50, 60), 'horizontal'), 1, 3, 3)
        restored = geometry.boxes_to_source(rows, matrix)
        (restored * torch.tensor([1.0, 10, 100, 1000])).sum().backward()
        assert rows.grad.tolist() == [[-100, 10, -1, 1000]]


class TestInverse:
    @_many
    @given(box_lists, straight_matrices)
    def test_round_trip(self, rows, chain):
        matrices = _tensor(np.tile(_compose(chain), (len(rows), 1, 1)), -1, 3, 3)
        source = _tensor(rows, -1, 4)
        back = geometry.boxes_to_source(geometry.map_boxes(source, matrices), matrices)
        torch.testing.assert_close(back, source, rtol=0, atol=1e-6)

    @_many
    @given(
        st.lists(st.tuples(coordinates, coordinates), max_size=5),
        st.lists(rotations | scales | flips | translations, min_size=1, max_size=5),
    )
    def test_round_trip_of_points_through_any_affine_matrix(self, points, chain):
        matrix, source = _tensor(_compose(chain), 3, 3), _tensor(points, -1, 2)
        back = geometry.points_to_source(geometry.map_points(source, matrix), matrix)
        torch.testing.assert_close(back, source, rtol=0, atol=1e-6)

    def test_rotated_box_comes_back_larger(self):
        matrix = _tensor(geometry.rotation_matrix((50, 50), 45), 1, 3, 3)
        box = _boxes([40, 40, 60, 60])
        back = geometry.boxes_to_source(geometry.map_boxes(box, matrix), matrix)
        torch.testing.assert_close(back, _boxes([30, 30, 70, 70]))

    @pytest.mark.parametrize(
        'matrix',
        [
            geometry.rotation_matrix((5, 8), 33),
            geometry.scale_matrix(1e-3, 40),
            _perspective(),
            geometry.scale_matrix(1e-5, 1e-5),
            np.eye(3) * 7,
        ],
    )
    def test_equals_cramer(self, matrix):
        found = geometry.invert(_tensor(matrix, 3, 3)).numpy()
        np.testing.assert_allclose(found, reference.inverse(matrix), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize('shape', [(), (0,), (4,), (2, 3)])
    def test_batch_shapes_and_dtype(self, shape):
        matrices = torch.eye(3).expand(*shape, 3, 3)
        found = geometry.invert(matrices)
        assert found.shape == (*shape, 3, 3) and found.dtype == torch.float64
        assert geometry.is_invertible(matrices).shape == shape

    @pytest.mark.parametrize(
        'matrix, expected',
        [
            (np.eye(3), True),
            (geometry.scale_matrix(0, 1), False),
            (geometry.scale_matrix(1, 0), False),
            (np.zeros((3, 3)), False),
            (np.ones((3, 3)), False),
            (geometry.scale_matrix(1e-8, 1e-8), False),
            (geometry.scale_matrix(1e-3, 1e-3), True),
            (geometry.translation_matrix(1e12, 1e12), True),
            (geometry.scale_matrix(1e8, 1e-8), True),
            # Rank one; its determinant is a rounding error far above any fixed threshold.
            (np.outer([1e9 / 3, 1e9 / 7, 1e9 / 11], [0.1, 0.3, 0.7]), False),
            (np.array([[0.1, 0.3, 0], [0.2, 0.6, 0], [0, 0, 1e6]]) * 1e6, False),
            (np.full((3, 3), np.nan), False),
            (np.diag([np.inf, 1, 1]), False),
            (np.diag([1e200, 1e200, 1]), False),
        ],
    )
    def test_is_invertible(self, matrix, expected):
        assert geometry.is_invertible(_tensor(matrix, 3, 3)).item() is expected

    @pytest.mark.parametrize(
        'matrix',
        [
            geometry.scale_matrix(0, 1),
            np.zeros((3, 3)),
            np.ones((3, 3)),
            np.full((3, 3), np.nan),
            np.diag([np.inf, 1, 1]),
        ],
    )
    def test_without_inverse_everything_goes_to_the_origin(self, matrix):
        matrix = _tensor(matrix, 3, 3)
        found = geometry.invert(matrix)
        assert found.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
        moved = geometry.boxes_to_source(_boxes([1, 2, 3, 4]), matrix[None])
        assert moved.tolist() == [[0] * 4]

    def test_a_bad_matrix_does_not_disturb_its_neighbours(self):
        good = geometry.rotation_matrix((5, 8), 33)
        matrices = _tensor([good, np.zeros((3, 3)), good], 3, 3, 3)
        found = geometry.invert(matrices)
        for row in (0, 2):
            np.testing.assert_allclose(found[row].numpy(), reference.inverse(good), atol=1e-12)

    def test_without_inverse_the_gradient_is_zero(self):
        rows = _boxes([1, 2, 3, 4]).requires_grad_()
        geometry.boxes_to_source(rows, torch.zeros(1, 3, 3)).sum().backward()
        assert rows.grad.tolist() == [[0, 0, 0, 0]]


class TestExtremes:
    @settings(max_examples=300, deadline=None)
    @given(wild_matrices, boxes)
    def test_no_nan(self, matrix, row):
        matrix, box = _tensor(matrix, 3, 3), _boxes(row)
        points = box.reshape(2, 2)
        for value in (
            geometry.map_boxes(box, matrix[None]),
            geometry.invert(matrix),
            geometry.boxes_to_source(box, matrix[None]),
            geometry.map_points(points, matrix),
            geometry.points_to_source(points, matrix),
        ):
            assert not value.isnan().any()
        assert geometry.invert(matrix).isfinite().all()

    @settings(max_examples=200, deadline=None)
    @given(boxes, st.floats(-20, 20), st.floats(-20, 20))
    def test_perspective_horizons(self, row, px, py):
        matrix = np.array([[1, 0, 0], [0, 1, 0], [px, py, 1]])
        moved = geometry.map_boxes(_boxes(row), _tensor(matrix, 1, 3, 3))
        assert moved.isfinite().all()
        assert (moved[:, :2] <= moved[:, 2:]).all()

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    def test_point_on_the_horizon_goes_far_away(self, dtype):
        matrix = _tensor([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1]], 3, 3)
        points = torch.tensor([[100.0, 50]], dtype=dtype, requires_grad=True)
        moved = geometry.map_points(points, matrix)
        assert moved.isfinite().all() and moved.abs().min() > 1e6
        moved.sum().backward()
        assert points.grad.isfinite().all()

    @pytest.mark.parametrize('factor', [1e-6, 1e6])
    def test_huge_and_tiny_scales_still_round_trip(self, factor):
        matrix = _tensor(geometry.scale_matrix(factor, 1 / factor), 1, 3, 3)
        box = _boxes([1, 2, 17, 11])
        back = geometry.boxes_to_source(geometry.map_boxes(box, matrix), matrix)
        torch.testing.assert_close(back, box, rtol=0, atol=1e-6)


SHAPE = (60, 80)  # (height, width) of the replicas of the mask tests
REGION = [20.0, 15.0, 52.0, 39.0]
SHEAR = np.array([[1, 0.3, -8], [-0.1, 1, 4], [0, 0, 1]])
REPLICAS = {
    'identity': np.eye(3),
    'horizontal flip': geometry.flip_matrix(SHAPE, 'horizontal'),
    'vertical flip': geometry.flip_matrix(SHAPE, 'vertical'),
    'crop': geometry.translation_matrix(-19.3, -11.6),
    'uneven scale': geometry.scale_matrix(1.7, 0.6),
    'quarter turn': geometry.rotation_matrix((40, 30), 90),
    'rotation': geometry.rotation_matrix((33, 20), 25),
    'shear': SHEAR,
    'all of it': geometry.flip_matrix(SHAPE, 'horizontal')
    @ geometry.rotation_matrix((33, 20), -40)
    @ geometry.scale_matrix(0.8, 1.3)
    @ SHEAR,
}
every_replica = pytest.mark.parametrize('matrix', REPLICAS.values(), ids=REPLICAS)


def _wave(x, y):
    return 2 * np.sin(x / 9) + np.cos(y / 7 + x / 15)


def _plane(x, y):
    return 3 + 0.5 * x - 0.8 * y


def _roi(matrix, margins=(3, 4, 5, 2), region=REGION):
    """Around the moved region, with so many pixels to spare on each side."""
    x1, y1, x2, y2 = reference.move_box(region, matrix)
    left, top, right, bottom = margins
    return [x1 - left, y1 - top, x2 + right, y2 + bottom]


def _drawn(field, roi, matrix, shape):
    """What a head predicts that knows the field: its value at each cell of the RoI."""
    back = reference.inverse(matrix)
    return np.array(
        [
            [field(*reference.move_point(x, y, back)) for x, y in row]
            for row in reference.cell_centers(roi, *shape)
        ]
    )


def _field_on_grid(field, size, region=REGION):
    centers = reference.cell_centers(region, size, size)
    return field(centers[..., 0], centers[..., 1])


def _masks_to_source(masks, rois, matrices, regions, size):
    """The function for arrays; values and inside as arrays."""
    values, inside = geometry.masks_to_source(
        torch.tensor(np.asarray(masks)),
        _boxes(*rois),
        _tensor(matrices, -1, 3, 3),
        _boxes(*regions),
        size,
    )
    assert inside.dtype == torch.bool and inside.shape == values.shape
    return values.numpy(), inside.numpy()


class TestMasksToSource:
    @_some
    @given(
        chains=st.lists(
            st.lists(gentle_scales | flips | rotations, min_size=1, max_size=3),
            min_size=1,
            max_size=3,
        ),
        shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
        size=st.integers(1, 4),
        seed=st.integers(0, 999),
    )
    def test_equals_the_reference(self, chains, shape, size, seed):
        """Each mask with a matrix, a RoI and a region of its own, which overlap partly."""
        random = np.random.default_rng(seed)
        matrices = [_compose(chain) for chain in chains]
        regions = [[x, y, x + w, y + h] for x, y, w, h in random.uniform(5, 60, (len(chains), 4))]
        rois = [
            _roi(
                matrix,
                random.uniform(-1, 2, 4)
                * 0.4
                * np.ptp(np.reshape(reference.move_box(region, matrix), (2, 2)), axis=0).min(),
                region,
            )
            for matrix, region in zip(matrices, regions)
        ]
        masks = random.normal(size=(len(chains), *shape))
        values, inside = _masks_to_source(masks, rois, matrices, regions, size)
        for row, case in enumerate(zip(masks, rois, matrices, regions)):
            expected, depth = reference.mask_to_source(*case, size)
            np.testing.assert_allclose(values[row], expected, rtol=0, atol=1e-6)
            clear = np.abs(depth) > 1e-6
            np.testing.assert_array_equal(inside[row][clear], (depth >= 0)[clear])

    @every_replica
    @pytest.mark.parametrize('max_blur', [0.0, 0.03, 0.1, 0.25, 1.0])
    def test_cells_read_across_an_edge_are_left_out(self, matrix, max_blur):
        """Against the naive reading of p and of its square."""
        roi = _roi(matrix, (3, -2, 4, 5))
        mask = np.random.default_rng(0).normal(scale=2, size=(9, 7))
        p = 1 / (1 + np.exp(-mask))
        arguments = roi, matrix, REGION, 12
        mean, depth = reference.mask_to_source(p, *arguments)
        square, _ = reference.mask_to_source(p**2, *arguments)
        blur = np.sqrt((square - mean**2).clip(0))
        clear = (np.abs(depth) > 1e-6) & (np.abs(blur - max_blur) > 1e-5)
        values, inside = geometry.masks_to_source(
            torch.tensor(mask)[None],
            _boxes(roi),
            _tensor([matrix], -1, 3, 3),
            _boxes(REGION),
            12,
            max_blur=max_blur,
        )
        expected = (depth >= 0) & (blur <= max_blur)
        np.testing.assert_array_equal(inside[0].numpy()[clear], expected[clear])
        alone, _ = _masks_to_source([mask], [roi], [matrix], [REGION], 12)
        np.testing.assert_array_equal(values.numpy(), alone)

    def test_a_grid_on_the_cells_of_the_mask_is_read_sharply(self):
        """Whatever the mask holds: nothing is interpolated there."""
        mask = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]], requires_grad=True)
        box = _boxes([10, 20, 30, 50])
        values, inside = geometry.masks_to_source(
            mask, box, torch.eye(3)[None], box, 2, max_blur=1e-3
        )
        assert inside.all() and torch.equal(values, mask) and not inside.requires_grad

    @every_replica
    def test_restores_a_plane_exactly(self, matrix):
        """A field that bilinear interpolation holds, and RoIs that leave room."""
        roi = _roi(matrix)
        mask = _drawn(_plane, roi, matrix, (17, 23))
        values, inside = _masks_to_source([mask], [roi], [matrix], [REGION], 9)
        assert inside.all()
        np.testing.assert_allclose(values[0], _field_on_grid(_plane, 9), atol=1e-9)

    def test_replicas_of_one_instance_agree(self):
        """All at once, each with a RoI of its own; only interpolation sets them apart."""
        matrices = list(REPLICAS.values())
        rois = [_roi(matrix, np.roll((3, 4, 5, 2), i)) for i, matrix in enumerate(matrices)]
        masks = [_drawn(_wave, *case, (28, 28)) for case in zip(rois, matrices)]
        values, inside = _masks_to_source(masks, rois, matrices, [REGION] * len(matrices), 14)
        assert inside.all()
        expected = np.tile(_field_on_grid(_wave, 14), (len(matrices), 1, 1))
        np.testing.assert_allclose(values, expected, atol=0.03)

    @pytest.mark.parametrize('direction', DIRECTIONS)
    def test_a_mask_that_was_not_mirrored_back_does_not_agree(self, direction):
        matrix = geometry.flip_matrix(SHAPE, direction)
        roi = _roi(matrix, (3, 3, 3, 3))
        mask = _drawn(_wave, roi, matrix, (28, 28))
        # The plain RoI, as if the replica were the source itself.
        values, inside = _masks_to_source(
            [mask], [_roi(np.eye(3), (3, 3, 3, 3))], [np.eye(3)], [REGION], 14
        )
        assert inside.all()
        assert np.abs(values[0] - _field_on_grid(_wave, 14)).mean() > 0.3

    @every_replica
    def test_a_roi_that_sees_a_part(self, matrix):
        """The left and upper half of the moved region; the rest is outside."""
        x1, y1, x2, y2 = _roi(matrix)
        roi = [x1, y1, (x1 + x2) / 2, (y1 + y2) / 2]
        mask = _drawn(_plane, roi, matrix, (20, 20))
        values, inside = _masks_to_source([mask], [roi], [matrix], [REGION], 10)
        _, depth = reference.mask_to_source(mask, roi, matrix, REGION, 10)
        np.testing.assert_array_equal(inside[0], depth >= 0)
        assert 10 < inside.sum() < 60
        # Half a cell from the RoI's edge the mask's own values end.
        deep = depth > 1
        expected = _field_on_grid(_plane, 10)
        np.testing.assert_allclose(values[0][deep], expected[deep], atol=1e-9)

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        'region, rows, columns',
        [
            ([0, 0, 8, 8], slice(0, 8), slice(0, 8)),
            ([4, 2, 8, 6], slice(2, 6), slice(4, 8)),
            ([2, 5, 4, 7], slice(5, 7), slice(2, 4)),
        ],
    )
    def test_cells_that_fall_on_cells_are_copied(self, region, rows, columns, dtype):
        mask = torch.randn(1, 8, 8, dtype=dtype)
        offset = torch.tensor([3.0, 5, 3, 5])
        values, inside = geometry.masks_to_source(
            mask,
            torch.tensor([[0.0, 0, 8, 8]]) + offset,
            torch.eye(3)[None],
            torch.tensor([region]) + offset,
            rows.stop - rows.start,
        )
        assert inside.all()
        assert torch.equal(values, mask[:, rows, columns])

    @pytest.mark.parametrize(
        'matrix, undone',
        [
            (geometry.flip_matrix((8, 8), 'horizontal'), lambda mask: mask[:, ::-1]),
            (geometry.flip_matrix((8, 8), 'vertical'), lambda mask: mask[::-1]),
            (geometry.flip_matrix((8, 8), 'diagonal'), lambda mask: mask[::-1, ::-1]),
            (geometry.rotation_matrix((4, 4), 90), lambda mask: np.rot90(mask)),
            (geometry.rotation_matrix((4, 4), -90), lambda mask: np.rot90(mask, -1)),
            (geometry.scale_matrix(3, 0.5), lambda mask: mask),
        ],
    )
    def test_moved_cells_are_copied(self, matrix, undone):
        """numpy turns anticlockwise."""
        mask, whole = np.random.default_rng(0).normal(size=(8, 8)), [0, 0, 8, 8]
        values, inside = _masks_to_source(
            [mask], [reference.move_box(whole, matrix)], [matrix], [whole], 8
        )
        assert inside.all()
        np.testing.assert_allclose(values[0], undone(mask), atol=1e-12)

    def test_cells_between_four_of_the_mask_get_their_mean(self):
        mask = np.arange(24.0).reshape(4, 6)
        values, _ = _masks_to_source([mask], [[0, 0, 6, 4]], [np.eye(3)], [[1, 0, 5, 4]], 2)
        # The centres are the corners (2, 1), (4, 1), (2, 3) and (4, 3) of cells.
        assert values.tolist() == [[[4.5, 6.5], [16.5, 18.5]]]

    def test_outside_and_on_the_edge(self):
        """Centres at 0.5, 1.5, 2.5, 3.5; the RoI's edges count as inside."""
        mask = np.array([[1.0, 3.0]])
        values, inside = _masks_to_source(
            [mask], [[1.5, 0.5, 2.5, 3]], [np.eye(3)], [[0, 0, 4, 4]], 4
        )
        assert inside[0].tolist() == [[False, True, True, False]] * 3 + [[False] * 4]
        assert values[0].tolist() == [[1, 1, 3, 3]] * 4

    @pytest.mark.parametrize(
        'roi',
        [
            [2.5, 0, 2.5, 4],  # a centre lies on the line
            [0, 1.5, 4, 1.5],
            [2.5, 1.5, 2.5, 1.5],
            [3, 3, 1, 1],
            [3, 0, 1, 4],
            [math.nan] * 4,
            [0, 0, math.nan, 4],
        ],
    )
    def test_a_roi_without_area_has_no_inside(self, roi):
        masks = torch.randn(2, 3, 5, requires_grad=True)
        values, inside = geometry.masks_to_source(
            masks,
            torch.tensor([roi, [0, 0, 4, 4]]),
            torch.eye(3).expand(2, 3, 3),
            torch.tensor([[0.0, 0, 4, 4]] * 2),
            4,
        )
        assert not inside[0].any() and inside[1].all()
        assert values.isfinite().all()
        values.sum().backward()
        assert masks.grad.isfinite().all()

    @pytest.mark.parametrize('bad', [0.0, math.nan, 1e300])
    def test_a_matrix_that_leads_nowhere_does_not_disturb_its_neighbours(self, bad):
        good = REPLICAS['rotation']
        masks = torch.randn(3, 6, 6, dtype=torch.float64)
        arguments = (
            _boxes(*[_roi(good)] * 3),
            _tensor([good, np.full((3, 3), bad), good], 3, 3, 3),
            _boxes(*[REGION] * 3),
        )
        values, inside = geometry.masks_to_source(masks, *arguments, 5)
        assert values.isfinite().all()
        assert not inside[1].any() and inside[0].all() and inside[2].all()
        alone, _ = geometry.masks_to_source(masks[:1], *(x[:1] for x in arguments), 5)
        assert torch.equal(values[0], alone[0])

    @pytest.mark.parametrize('shape', [(0, 7, 3), (0, 1, 1)])
    def test_no_masks(self, shape):
        masks = torch.zeros(shape, requires_grad=True)
        values, inside = geometry.masks_to_source(
            masks, torch.zeros(0, 4), torch.zeros(0, 3, 3), torch.zeros(0, 4), 5
        )
        assert values.shape == inside.shape == (0, 5, 5)
        values.sum().backward()
        assert masks.grad.shape == shape

    def test_gradient(self):
        matrices = [REPLICAS['all of it'], REPLICAS['crop']]
        masks = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
        rois = _boxes(_roi(matrices[0]), _roi(matrices[1], (-9, 2, 3, -8)))
        arguments = rois, _tensor(matrices, 2, 3, 3), _boxes(REGION, REGION)
        assert torch.autograd.gradcheck(
            lambda x: geometry.masks_to_source(x, *arguments, 3)[0], (masks,)
        )

    def test_gradient_reaches_the_masks_only(self):
        masks = torch.randn(1, 4, 4, requires_grad=True)
        roi = torch.tensor([[0.0, 0, 4, 4]], requires_grad=True)
        region = torch.tensor([[1.0, 0, 3, 2]], requires_grad=True)
        values, _ = geometry.masks_to_source(masks, roi, torch.eye(3)[None], region, 2)
        (values * torch.tensor([[1.0, 10], [100, 1000]])).sum().backward()
        assert masks.grad.tolist() == [[[0, 1, 10, 0], [0, 100, 1000, 0], [0] * 4, [0] * 4]]
        assert roi.grad is None and region.grad is None

    @pytest.mark.parametrize('autocast', [None, torch.bfloat16])
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
    def test_computes_in_float32(self, dtype, autocast):
        """Masks and RoIs of mixed precision training."""
        matrix = REPLICAS['all of it']
        masks = torch.randn(1, 28, 28).to(dtype).requires_grad_()
        roi = torch.tensor([_roi(matrix)]).to(dtype)
        arguments = _tensor(matrix, 1, 3, 3), torch.tensor([REGION]), 14
        with torch.autocast('cpu', dtype=autocast, enabled=autocast is not None):
            values, inside = geometry.masks_to_source(masks, roi, *arguments)
        wide, wide_inside = geometry.masks_to_source(
            masks.detach().double(), roi.double(), *arguments
        )
        assert values.dtype == torch.float32 and wide.dtype == torch.float64
        torch.testing.assert_close(values.double(), wide, rtol=0, atol=1e-5)
        assert torch.equal(inside, wide_inside)
        values.sum().backward()
        assert masks.grad.dtype == dtype and masks.grad.any()


class TestSidePositions:
    @_some
    @given(
        cases=st.lists(
            st.tuples(straight_matrices, st.tuples(coordinates, coordinates), st.floats(0.5, 40)),
            min_size=1,
            max_size=4,
        ),
        count=st.integers(2, 6),
        start=st.floats(-3, 30),
    )
    def test_equals_the_reference(self, cases, count, start):
        """Each point with a matrix and a spacing of its own."""
        matrices = [_compose(chain) for chain, _, _ in cases]
        centers = [center for _, center, _ in cases]
        distances = [start + step * np.arange(count) for _, _, step in cases]
        positions, sides = geometry.side_positions_to_source(
            _tensor(centers, -1, 2), _tensor(distances, -1, count), _tensor(matrices, -1, 3, 3)
        )
        assert positions.dtype == torch.float64 and sides.dtype == torch.int64
        for row, case in enumerate(zip(centers, distances, matrices)):
            expected, expected_sides = reference.side_positions(*case)
            assert sides[row].tolist() == expected_sides
            np.testing.assert_allclose(positions[row].numpy(), expected, rtol=1e-9, atol=1e-6)

    # The point (10, 20) and the distances 0, 2, 4 in an image 40 wide and 30 high;
    # sides are numbered left, top, right, bottom.
    @pytest.mark.parametrize(
        'matrix, x, y, sides',
        [
            (np.eye(3), 10, 20, [0, 1, 2, 3]),
            (geometry.flip_matrix((30, 40), 'horizontal'), 30, 20, [2, 1, 0, 3]),
            (geometry.flip_matrix((30, 40), 'vertical'), 10, 10, [0, 3, 2, 1]),
            (geometry.flip_matrix((30, 40), 'diagonal'), 30, 10, [2, 3, 0, 1]),
            (geometry.rotation_matrix((20, 15), 180), 30, 10, [2, 3, 0, 1]),
            # Clockwise from source to replica: the replica's top is the source's left.
            (geometry.rotation_matrix((0, 0), 90), 20, -10, [1, 2, 3, 0]),
            (geometry.rotation_matrix((0, 0), -90), -20, 10, [3, 0, 1, 2]),
            (geometry.translation_matrix(-5, 7), 15, 13, [0, 1, 2, 3]),
        ],
    )
    def test_by_hand(self, matrix, x, y, sides):
        positions, found = geometry.side_positions_to_source(
            _tensor([10, 20], 1, 2), _tensor([0, 2, 4], 1, 3), _tensor(matrix, 1, 3, 3)
        )
        assert found.tolist() == [sides]
        np.testing.assert_allclose(
            positions[0].numpy(),
            [[x, x - 2, x - 4], [y, y - 2, y - 4], [x, x + 2, x + 4], [y, y + 2, y + 4]],
            atol=1e-12,
        )

    def test_uneven_scale_with_a_shift_and_a_flip(self):
        matrix = (
            geometry.flip_matrix((30, 40), 'horizontal')
            @ geometry.translation_matrix(4, 2)
            @ geometry.scale_matrix(2, 0.5)
        )
        positions, sides = geometry.side_positions_to_source(
            _tensor([10, 20], 1, 2), _tensor([0, 2, 4], 1, 3), _tensor(matrix, 1, 3, 3)
        )
        # x: 40 - 10 = 30, (30 - 4) / 2 = 13, spaced by 1; y: (20 - 2) / 0.5, by 4.
        assert positions.tolist() == [[[13, 12, 11], [36, 32, 28], [13, 14, 15], [36, 40, 44]]]
        assert sides.tolist() == [[2, 1, 0, 3]]

    @_some
    @given(
        chain=straight_matrices,
        box=boxes.filter(lambda box: box[2] - box[0] > 1 and box[3] - box[1] > 1),
    )
    def test_the_true_distances_lead_to_the_sides_of_the_source_box(self, chain, box):
        matrix = _compose(chain)
        x1, y1, x2, y2 = reference.move_box(box, matrix)
        x, y = 0.3 * x1 + 0.7 * x2, 0.4 * y1 + 0.6 * y2
        true = np.array([x - x1, y - y1, x2 - x, y2 - y])  # of the replica's sides
        order = true.argsort()
        positions, sides = geometry.side_positions_to_source(
            _tensor([x, y], 1, 2), _tensor(true[order], 1, 4), _tensor(matrix, 1, 3, 3)
        )
        where = order.argsort()[sides[0].numpy()]
        np.testing.assert_allclose(positions[0].numpy()[range(4), where], box, atol=1e-6)

    def test_every_side_once(self):
        matrices = _tensor(list(REPLICAS.values())[:6], 6, 3, 3)
        _, sides = geometry.side_positions_to_source(
            torch.rand(6, 2), torch.arange(5.0).expand(6, 5), matrices
        )
        assert sides.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 6

    @pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
    def test_computes_in_float64(self, dtype):
        far = _tensor(geometry.translation_matrix(1e6, 0), 1, 3, 3)
        positions, _ = geometry.side_positions_to_source(
            torch.tensor([[8, 16]], dtype=dtype), torch.tensor([[0, 0.25]], dtype=dtype), far
        )
        assert positions.tolist() == [
            [[8 - 1e6, 7.75 - 1e6], [16, 15.75], [8 - 1e6, 8.25 - 1e6], [16, 16.25]]
        ]

    def test_no_points(self):
        positions, sides = geometry.side_positions_to_source(
            torch.zeros(0, 2), torch.zeros(0, 17), torch.zeros(0, 3, 3)
        )
        assert positions.shape == (0, 4, 17) and sides.shape == (0, 4)

    def test_without_inverse_the_positions_are_finite(self):
        positions, sides = geometry.side_positions_to_source(
            torch.rand(2, 2), torch.arange(3.0).expand(2, 3), torch.zeros(2, 3, 3)
        )
        assert positions.isfinite().all()
        assert (sides >= 0).all() and (sides < 4).all()


class TestVisibleFraction:
    @pytest.mark.parametrize(
        'box, whole, expected',
        [
            ([2, 3, 6, 9], [2, 3, 6, 9], 1.0),
            ([0, 3, 4, 9], [-4, 3, 4, 9], 0.5),  # clipped already
            ([-4, 3, 4, 9], [-4, 3, 4, 9], 0.5),  # not clipped yet
            ([7, 13, 11, 17], [7, 13, 15, 21], 0.25),
            ([20, 3, 30, 9], [20, 3, 30, 9], 0.0),  # beside the image
            ([2, 3, 2, 9], [2, 3, 2, 9], 0.0),  # a line
            ([2, 3, 6, 9], [2, 3, 2, 9], 0.0),  # the whole has no area
            ([6, 9, 2, 3], [2, 3, 6, 9], 0.0),  # crossed sides
            ([-100, -100, 100, 100], [0, 0, 1, 1], 1.0),  # never above one
            ([1, 1, 1 + 1e-7, 1 + 1e-7], [1, 1, 1 + 2e-7, 1 + 1e-7], 0.5),
        ],
    )
    def test_by_hand(self, box, whole, expected):
        found = geometry.visible_fraction(_rows(box), _rows(whole), (17, 11))
        assert found.dtype == np.float32
        assert found.item() == pytest.approx(expected, abs=1e-6)

    @_many
    @given(box_lists, st.sampled_from(SIZES))
    def test_equals_the_reference(self, rows, shape):
        whole = np.reshape(rows, (-1, 4))
        found = geometry.visible_fraction(whole, whole, shape)
        expected = [reference.visible_fraction(row, row, shape) for row in rows]
        np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-5, atol=1e-7)

    def test_mixed_dtypes(self):
        found = geometry.visible_fraction(
            _rows([0, 0, 2, 2]).astype(np.float32), _rows([0, 0, 4, 2]), (17, 11)
        )
        assert found.tolist() == [0.5]

    def test_takes_the_shape_of_a_colour_image(self):
        box = _rows([0, 0, 4, 2])
        assert geometry.visible_fraction(box, box, (17, 11, 3)).tolist() == [1]

    def test_empty(self):
        none = np.zeros((0, 4))
        assert geometry.visible_fraction(none, none, (17, 11)).shape == (0,)

    def test_whole_box_below_any_threshold(self):
        box = _rows([0, 0, 1, 1e-57])
        assert geometry.visible_fraction(box, box, (17, 11)).item() == 1

    def test_infinite_whole(self):
        whole = _rows([-math.inf, 0, math.inf, 9])
        assert geometry.visible_fraction(_rows([0, 0, 4, 9]), whole, (17, 11)).item() == 0


def _rows(box):
    return np.array([box], dtype=np.float64)


class TestMoveBoxes:
    """The map for data workers against the one for everything else."""

    @_many
    @given(box_lists, straight_matrices, rotations)
    @example([[1, 2, 30, 40]], [np.eye(3)], _perspective())
    def test_equals_map_boxes(self, rows, chain, last):
        rows = np.reshape(rows, (-1, 4)).astype(np.float64)
        matrices = np.tile(last @ _compose(chain), (len(rows), 1, 1))
        expected = geometry.map_boxes(torch.from_numpy(rows), torch.from_numpy(matrices))
        found = geometry.move_boxes(rows, matrices)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)

    def test_a_matrix_without_depth(self):
        # Every point lies on the horizon.
        found = geometry.move_boxes(np.array([[0.0, 0, 4, 4]]), np.zeros((1, 3, 3)))
        assert found.tolist() == [[0, 0, 0, 0]]
        far = np.array([[[0, 0, 1], [0, 0, -2], [0, 0, 0]]], dtype=np.float64)
        np.testing.assert_allclose(
            geometry.move_boxes(np.array([[0.0, 0, 4, 4]]), far), [[1e9, -2e9] * 2]
        )

    def test_broken_matrices_and_boxes(self):
        matrix = geometry.scale_matrix(2, 3)
        broken = np.where(np.eye(3) == 1, np.nan, 0)
        found = geometry.move_boxes(
            np.array([[1, 2, 3, 4], [1, 2, 3, 4], [-np.inf, 0, np.inf, 1], [np.nan] * 4]),
            np.stack([matrix, broken, matrix, matrix]),
        )
        assert found[0].tolist() == [2, 6, 6, 12]
        assert found[1].tolist() == [0, 0, 0, 0]
        assert found[2].tolist() == [-2e100, 0, 2e100, 3]
        assert np.isnan(found[3]).all()


def test_overlap_of_masks_cell_by_cell():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(5, 3, 4, generator=generator)
    masks = (torch.rand(5, 3, 4, generator=generator) < 0.4).to(torch.uint8)
    p[4], masks[4] = 0, 0
    for found, own, mask in zip(geometry.overlap_of_masks(p, masks), p, masks):
        cells = [(float(a), int(b)) for a, b in zip(own.flatten(), mask.flatten())]
        union = sum(a + b - a * b for a, b in cells)
        expected = sum(a * b for a, b in cells) / union if union else 0.0
        assert float(found) == pytest.approx(expected, rel=1e-5)
