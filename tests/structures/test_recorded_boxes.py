"""Boxes that record what is done to them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes, get_box_type
from mmdet.structures.mask import BitmapMasks

from lt_mm.structures.recorded_boxes import LostTraceError, Trace, TracedBoxes
from tests import reference

ROWS = [[5.0, 8, 30, 28], [44, 6, 72, 34], [20, 36, 58, 55]]
SHAPE = (60, 80)
HOMOGRAPHY = np.array([[1.1, 0.2, 5], [-0.1, 0.9, 3], [1e-3, 0, 1]])

# The stock translate_ copies distances that are a tensor in a way torch advises against.
pytestmark = pytest.mark.filterwarnings('ignore:To copy construct from a tensor')

MOVES = [
    ('flip_', (SHAPE,)),
    ('flip_', (SHAPE, 'vertical')),
    ('flip_', (SHAPE, 'diagonal')),
    ('translate_', ((3.5, -7),)),
    ('translate_', (np.array([-3, 2]),)),
    ('translate_', (torch.tensor([1, 2]),)),
    ('rescale_', ((0.5, 3),)),
    ('rotate_', ((40, 30), 33.0)),
    ('project_', (HOMOGRAPHY,)),
    ('project_', (torch.tensor(HOMOGRAPHY, dtype=torch.float32),)),
    ('resize_', ((0.5, 3),)),
]


def _traced(rows=ROWS, image_id=4):
    tensor = torch.tensor(rows).reshape(-1, 4)
    return TracedBoxes(tensor, trace=Trace.start(tensor, image_id))


def _moved(boxes):
    """The source boxes, moved by the recorded matrices."""
    return reference.move_boxes(boxes.trace.source_boxes, boxes.trace.matrices)


def _masks(rows):
    masks = np.zeros((len(rows), *SHAPE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, np.asarray(rows, int).reshape(-1, 4)):
        mask[y1:y2, x1:x2] = 1
    return BitmapMasks(masks, *SHAPE)


class TestMoves:
    @pytest.mark.parametrize('method, args', MOVES)
    def test_record_equals_coordinates(self, method, args):
        boxes = _traced()
        getattr(boxes, method)(*args)
        np.testing.assert_allclose(boxes.tensor.numpy(), _moved(boxes), atol=1e-3)
        assert not boxes.written_behind() and boxes.is_recorded()

    @pytest.mark.parametrize('method, args', MOVES)
    def test_coordinates_equal_the_stock_type(self, method, args):
        boxes, stock = _traced(), HorizontalBoxes(torch.tensor(ROWS))
        getattr(boxes, method)(*args)
        getattr(stock, method)(*args)
        assert torch.equal(boxes.tensor, stock.tensor)

    @pytest.mark.parametrize('method, args', MOVES)
    def test_without_rows_the_image_is_still_recorded(self, method, args):
        full, empty = _traced(), _traced([])
        getattr(full, method)(*args)
        getattr(empty, method)(*args)
        np.testing.assert_array_equal(full.trace.image_matrix, empty.trace.image_matrix)
        assert len(empty) == len(empty.trace) == 0

    def test_a_chain_composes_from_the_left(self):
        boxes = _traced()
        boxes.translate_((10, 0))
        boxes.rescale_((2, 2))
        np.testing.assert_array_equal(boxes.trace.image_matrix, [[2, 0, 20], [0, 2, 0], [0, 0, 1]])
        boxes.flip_((120, 200))
        np.testing.assert_allclose(boxes.tensor.numpy(), _moved(boxes))

    def test_all_rows_share_the_matrix_of_the_image(self):
        boxes = _traced()
        boxes.rotate_((3, 4), 20)
        for matrix in boxes.trace.matrices:
            np.testing.assert_array_equal(matrix, boxes.trace.image_matrix)

    def test_resize_about_centres_leaves_the_image(self):
        boxes = _traced()
        boxes.resize_((2, 2))
        np.testing.assert_array_equal(boxes.trace.image_matrix, np.eye(3))

    def test_clipping_moves_nothing(self):
        boxes = _traced()
        boxes.clip_((20, 50))
        np.testing.assert_array_equal(boxes.trace.matrices, np.tile(np.eye(3), (3, 1, 1)))
        assert boxes.tensor.max() == 50 and not boxes.written_behind()

    def test_clipping_leaves_the_source_boxes(self):
        """Also where the annotation is float64 and needs no conversion."""
        tensor = torch.tensor(ROWS, dtype=torch.float64)
        boxes = TracedBoxes(tensor, clone=False, trace=Trace.start(tensor, 4))
        boxes.clip_((20, 50))
        np.testing.assert_array_equal(boxes.trace.source_boxes, ROWS)

    def test_an_untraced_set_moves_untraced(self):
        boxes = TracedBoxes(torch.tensor(ROWS))
        boxes.flip_(SHAPE)
        boxes.resize_((2, 2))
        assert boxes.trace is None and not boxes.is_recorded()


class TestRows:
    @pytest.mark.parametrize(
        'index, kept',
        [
            (1, [1]),
            (-1, [2]),
            (np.int64(0), [0]),
            (slice(0, 2), [0, 1]),
            (slice(None, None, 2), [0, 2]),
            ([2, 0], [2, 0]),
            ([], []),
            (np.array([True, False, True]), [0, 2]),
            (np.array([2, 2]), [2, 2]),
            (np.array([], dtype=int), []),
            (torch.tensor([1, 0]), [1, 0]),
            (torch.tensor([False, True, False]), [1]),
            (torch.tensor(1), [1]),
            (torch.tensor([], dtype=torch.long), []),
            (np.array([-1]), [2]),
        ],
    )
    def test_indexing(self, index, kept):
        boxes = _traced()
        boxes.translate_((1, 0))
        picked = boxes[index]
        assert picked.trace.source_ids.tolist() == [[4, row] for row in kept]
        assert picked.tensor.tolist() == boxes.tensor[kept].tolist()
        np.testing.assert_allclose(picked.tensor.numpy(), _moved(picked))
        assert picked.is_recorded()

    @pytest.mark.parametrize(
        'duplicate',
        [
            copy.deepcopy,
            TracedBoxes.clone,
            TracedBoxes.detach,
            TracedBoxes.cpu,
            lambda boxes: pickle.loads(pickle.dumps(boxes)),
        ],
    )
    def test_copies_are_recorded_and_independent(self, duplicate):
        boxes = _traced()
        boxes.clip_(SHAPE)  # counts as a write to the tensor
        copied = duplicate(boxes)
        copied.translate_((5, 5))
        assert copied.is_recorded() and boxes.is_recorded()
        np.testing.assert_allclose(copied.tensor.numpy(), _moved(copied))
        np.testing.assert_array_equal(boxes.tensor.numpy(), ROWS)
        np.testing.assert_array_equal(boxes.trace.image_matrix, np.eye(3))

    def test_deepcopy_keeps_identity_in_a_structure(self):
        boxes = _traced()
        copied = copy.deepcopy(dict(one=boxes, two=boxes))
        assert copied['one'] is copied['two']

    @pytest.mark.parametrize(
        'change',
        [
            lambda boxes: boxes.to(torch.float64),
            lambda boxes: boxes.reshape(-1, 4),
            lambda boxes: boxes.empty_boxes(),
            lambda boxes: boxes.fake_boxes((3, 4)),
            lambda boxes: boxes.split(2)[0],
            lambda boxes: TracedBoxes(boxes.tensor),
        ],
    )
    def test_what_is_made_from_numbers_is_untraced(self, change):
        assert not change(_traced()).is_recorded()

    def test_rows_cannot_be_replaced(self):
        with pytest.raises(LostTraceError, match='row by row'):
            _traced()[0] = _traced()[1]

    def test_registered(self):
        assert get_box_type('lt_traced_hbox') == ('lt_traced_hbox', TracedBoxes)
        boxes = _traced()
        plain = boxes.convert_to('hbox')
        assert type(plain) is HorizontalBoxes and torch.equal(plain.tensor, boxes.tensor)
        assert torch.equal(TracedBoxes.overlaps(boxes, boxes).diag(), torch.ones(3))


class TestMerging:
    def test_every_row_keeps_its_source(self):
        first, second = _traced(ROWS[:2], 4), _traced(ROWS[1:], 9)
        first.flip_(SHAPE)
        second.translate_((100, 0))
        merged = first.cat([first, second])
        assert merged.trace.source_ids.tolist() == [[4, 0], [4, 1], [9, 0], [9, 1]]
        np.testing.assert_allclose(merged.tensor.numpy(), _moved(merged))
        assert merged.trace.image_matrix is None and merged.is_recorded()

    def test_parts_of_one_image_keep_its_matrix(self):
        boxes = _traced()
        boxes.flip_(SHAPE)
        merged = boxes.cat([boxes[[0]], boxes[[2]]])
        np.testing.assert_array_equal(merged.trace.image_matrix, boxes.trace.image_matrix)

    def test_one_image_at_two_places_has_no_matrix(self):
        boxes, other = _traced(), _traced()
        other.translate_((1, 0))
        assert boxes.cat([boxes, other]).trace.image_matrix is None

    def test_unknown_matrices_do_not_agree(self):
        boxes = _traced()
        boxes.trace = boxes.trace.with_unknown_image()
        assert boxes.cat([boxes, boxes.clone()]).trace.image_matrix is None

    def test_a_part_of_another_image_without_rows_counts(self):
        boxes = _traced()
        assert boxes.cat([boxes, _traced([], 9)]).trace.image_matrix is None

    @pytest.mark.parametrize(
        'other', [HorizontalBoxes(torch.tensor(ROWS)), TracedBoxes(torch.tensor(ROWS))]
    )
    def test_with_untraced_boxes_nothing_is_traced(self, other):
        assert not TracedBoxes.cat([_traced(), other]).is_recorded()

    def test_merged_after_writing(self):
        boxes = _traced()
        boxes.tensor[0, 0] = 0
        with pytest.raises(LostTraceError, match='written directly'):
            TracedBoxes.cat([boxes, _traced()])


class TestFromMasks:
    def test_coordinates_equal_the_stock_type(self):
        masks = _masks(ROWS)
        assert torch.equal(
            masks.get_bboxes(TracedBoxes).tensor, masks.get_bboxes(HorizontalBoxes).tensor
        )

    def test_inherits_row_by_row(self):
        boxes = _traced()
        boxes.flip_(SHAPE)
        made = _masks(boxes.tensor).get_bboxes(TracedBoxes)
        assert not made.is_recorded()
        assert made.resolve(boxes) and made.is_recorded()
        assert made.trace.source_ids.tolist() == [[4, 0], [4, 1], [4, 2]]
        np.testing.assert_array_equal(made.trace.image_matrix, boxes.trace.image_matrix)

    def test_inherits_after_filtering_and_merging(self):
        boxes, pasted = _traced(), _traced(ROWS[:1], 9)
        boxes.flip_(SHAPE)
        made = _masks(boxes.tensor).get_bboxes(TracedBoxes)
        merged = pasted.cat([made[np.array([False, True, True])], pasted])
        assert not merged.is_recorded()
        assert merged.resolve(boxes)
        assert merged.trace.source_ids.tolist() == [[4, 1], [4, 2], [9, 0]]
        assert merged.trace.image_id == 4 and merged.trace.image_matrix is None
        np.testing.assert_allclose(merged.tensor.numpy(), _moved(merged))

    def test_only_pasted_rows_are_left(self):
        """The image itself had no boxes."""
        empty, pasted = _traced([], 4), _traced(ROWS[:1], 9)
        merged = pasted.cat([_masks([]).get_bboxes(TracedBoxes), pasted])
        assert merged.resolve(empty)
        assert merged.trace.source_ids.tolist() == [[9, 0]]
        assert merged.trace.image_id == 4

    @pytest.mark.parametrize('rows', [ROWS[:2], [*ROWS, ROWS[0]], []])
    def test_another_number_of_masks_inherits_nothing(self, rows):
        made = _masks(rows).get_bboxes(TracedBoxes)
        assert not made.resolve(_traced()) and not made.is_recorded()

    def test_nothing_is_inherited_from_an_untraced_set(self):
        made = _masks(ROWS).get_bboxes(TracedBoxes)
        assert not made.resolve(TracedBoxes(torch.tensor(ROWS)))

    def test_resolving_a_traced_set_changes_nothing(self):
        boxes = _traced()
        trace = boxes.trace
        assert boxes.resolve(_traced(ROWS, 9)) and boxes.trace is trace


def _same_numbers(boxes):
    boxes.tensor = boxes.tensor.clone()


def _same_numbers_in_place(boxes):
    boxes.tensor[:] = boxes.tensor.clone()


def _through_numpy(boxes):
    boxes.numpy()[0, 0] += 1


def _in_place(boxes):
    boxes.tensor.mul_(2)


WRITES = [_same_numbers, _same_numbers_in_place, _through_numpy, _in_place]


class TestWrittenBehind:
    @pytest.mark.parametrize('write', WRITES)
    @pytest.mark.parametrize('method, args', [*MOVES, ('clip_', (SHAPE,)), ('__getitem__', (0,))])
    def test_refused(self, method, args, write):
        boxes = _traced()
        write(boxes)
        assert boxes.written_behind()
        with pytest.raises(LostTraceError, match='written directly'):
            getattr(boxes, method)(*args)

    @pytest.mark.parametrize('write', WRITES)
    @pytest.mark.parametrize(
        'duplicate', [TracedBoxes.clone, lambda boxes: pickle.loads(pickle.dumps(boxes))]
    )
    def test_a_copy_does_not_hide_it(self, duplicate, write):
        boxes = _traced()
        write(boxes)
        assert duplicate(boxes).written_behind()
        assert duplicate(duplicate(boxes)).written_behind()

    def test_reading_is_no_writing(self):
        boxes = _traced()
        boxes.numpy().sum(), boxes.tensor[0], boxes.areas, boxes.centers, boxes[1]
        boxes.is_inside(SHAPE), boxes.create_masks(SHAPE), str(boxes), boxes.tensor.numpy()
        assert not boxes.written_behind()

    def test_in_inference_mode(self):
        with torch.inference_mode():
            boxes = _traced()
            boxes.translate_((1, 1))
            assert boxes.is_recorded()
            boxes.tensor[0, 0] += 1
            assert boxes.written_behind()


class TestTrace:
    def test_start(self):
        trace = Trace.start(torch.tensor(ROWS), 7)
        assert trace.source_ids.dtype == np.int64
        assert trace.source_ids.tolist() == [[7, 0], [7, 1], [7, 2]]
        assert trace.source_boxes.dtype == trace.matrices.dtype == np.float64
        assert len(trace) == 3 and trace.image_id == 7

    def test_start_without_boxes(self):
        trace = Trace.start(torch.zeros(0, 4), 7)
        assert trace.source_ids.shape == (0, 2) and trace.matrices.shape == (0, 3, 3)

    def test_moving_leaves_the_trace_before(self):
        trace = Trace.start(torch.tensor(ROWS), 7)
        trace.moved(HOMOGRAPHY)
        trace.with_unknown_image()
        np.testing.assert_array_equal(trace.image_matrix, np.eye(3))
        np.testing.assert_array_equal(trace.matrices, np.tile(np.eye(3), (3, 1, 1)))

    def test_an_unknown_image_stays_unknown(self):
        trace = Trace.start(torch.tensor(ROWS), 7).with_unknown_image()
        assert trace.moved(HOMOGRAPHY).image_matrix is None
