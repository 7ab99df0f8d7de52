"""Boxes that record what is done to them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes, get_box_type
from mmdet.structures.mask import BitmapMasks

from lt_mm.core.provenance import Provenance
from lt_mm.structures.errors import LostRecordError
from lt_mm.structures.recorded_boxes import RecordedBoxes
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


def _recorded(rows=ROWS, image_id=4):
    tensor = torch.tensor(rows).reshape(-1, 4)
    return RecordedBoxes(tensor, provenance=Provenance.start(tensor, image_id))


def _moved(boxes):
    """The source boxes, moved by the recorded matrices."""
    return reference.move_boxes(boxes.provenance.source_boxes, boxes.provenance.matrices)


def _masks(rows):
    masks = np.zeros((len(rows), *SHAPE), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, np.asarray(rows, int).reshape(-1, 4)):
        mask[y1:y2, x1:x2] = 1
    return BitmapMasks(masks, *SHAPE)


class TestMoves:
    @pytest.mark.parametrize('method, args', MOVES)
    def test_record_equals_coordinates(self, method, args):
        boxes = _recorded()
        getattr(boxes, method)(*args)
        np.testing.assert_allclose(boxes.tensor.numpy(), _moved(boxes), atol=1e-3)
        assert not boxes.written_behind() and boxes.is_recorded()

    @pytest.mark.parametrize('method, args', MOVES)
    def test_coordinates_equal_the_stock_type(self, method, args):
        boxes, stock = _recorded(), HorizontalBoxes(torch.tensor(ROWS))
        getattr(boxes, method)(*args)
        getattr(stock, method)(*args)
        assert torch.equal(boxes.tensor, stock.tensor)

    @pytest.mark.parametrize('method, args', MOVES)
    def test_without_rows_the_image_is_still_recorded(self, method, args):
        full, empty = _recorded(), _recorded([])
        getattr(full, method)(*args)
        getattr(empty, method)(*args)
        np.testing.assert_array_equal(full.provenance.image_matrix, empty.provenance.image_matrix)
        assert len(empty) == len(empty.provenance) == 0

    def test_a_chain_composes_from_the_left(self):
        boxes = _recorded()
        boxes.translate_((10, 0))
        boxes.rescale_((2, 2))
        np.testing.assert_array_equal(
            boxes.provenance.image_matrix, [[2, 0, 20], [0, 2, 0], [0, 0, 1]]
        )
        boxes.flip_((120, 200))
        np.testing.assert_allclose(boxes.tensor.numpy(), _moved(boxes))

    def test_all_rows_share_the_matrix_of_the_image(self):
        boxes = _recorded()
        boxes.rotate_((3, 4), 20)
        for matrix in boxes.provenance.matrices:
            np.testing.assert_array_equal(matrix, boxes.provenance.image_matrix)

    def test_resize_about_centres_leaves_the_image(self):
        boxes = _recorded()
        boxes.resize_((2, 2))
        np.testing.assert_array_equal(boxes.provenance.image_matrix, np.eye(3))

    def test_clipping_moves_nothing(self):
        boxes = _recorded()
        boxes.clip_((20, 50))
        np.testing.assert_array_equal(boxes.provenance.matrices, np.tile(np.eye(3), (3, 1, 1)))
        assert boxes.tensor.max() == 50 and not boxes.written_behind()

    def test_clipping_leaves_the_source_boxes(self):
        """Also where the annotation is float64 and needs no conversion."""
        tensor = torch.tensor(ROWS, dtype=torch.float64)
        boxes = RecordedBoxes(tensor, clone=False, provenance=Provenance.start(tensor, 4))
        boxes.clip_((20, 50))
        np.testing.assert_array_equal(boxes.provenance.source_boxes, ROWS)

    def test_an_unrecorded_set_moves_unrecorded(self):
        boxes = RecordedBoxes(torch.tensor(ROWS))
        boxes.flip_(SHAPE)
        boxes.resize_((2, 2))
        assert boxes.provenance is None and not boxes.is_recorded()


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
        boxes = _recorded()
        boxes.translate_((1, 0))
        picked = boxes[index]
        assert picked.provenance.source_ids.tolist() == [[4, row] for row in kept]
        assert picked.tensor.tolist() == boxes.tensor[kept].tolist()
        np.testing.assert_allclose(picked.tensor.numpy(), _moved(picked))
        assert picked.is_recorded()

    @pytest.mark.parametrize(
        'duplicate',
        [
            copy.deepcopy,
            RecordedBoxes.clone,
            RecordedBoxes.detach,
            RecordedBoxes.cpu,
            lambda boxes: pickle.loads(pickle.dumps(boxes)),
        ],
    )
    def test_copies_are_recorded_and_independent(self, duplicate):
        boxes = _recorded()
        boxes.clip_(SHAPE)  # counts as a write to the tensor
        copied = duplicate(boxes)
        copied.translate_((5, 5))
        assert copied.is_recorded() and boxes.is_recorded()
        np.testing.assert_allclose(copied.tensor.numpy(), _moved(copied))
        np.testing.assert_array_equal(boxes.tensor.numpy(), ROWS)
        np.testing.assert_array_equal(boxes.provenance.image_matrix, np.eye(3))

    def test_deepcopy_keeps_identity_in_a_structure(self):
        boxes = _recorded()
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
            lambda boxes: RecordedBoxes(boxes.tensor),
        ],
    )
    def test_what_is_made_from_numbers_is_unrecorded(self, change):
        assert not change(_recorded()).is_recorded()

    def test_rows_cannot_be_replaced(self):
        with pytest.raises(LostRecordError, match='row by row'):
            _recorded()[0] = _recorded()[1]

    def test_registered(self):
        assert get_box_type('lt_recorded_hbox') == ('lt_recorded_hbox', RecordedBoxes)
        boxes = _recorded()
        plain = boxes.convert_to('hbox')
        assert type(plain) is HorizontalBoxes and torch.equal(plain.tensor, boxes.tensor)
        assert torch.equal(RecordedBoxes.overlaps(boxes, boxes).diag(), torch.ones(3))


class TestMerging:
    def test_every_row_keeps_its_source(self):
        first, second = _recorded(ROWS[:2], 4), _recorded(ROWS[1:], 9)
        first.flip_(SHAPE)
        second.translate_((100, 0))
        merged = first.cat([first, second])
        assert merged.provenance.source_ids.tolist() == [[4, 0], [4, 1], [9, 0], [9, 1]]
        np.testing.assert_allclose(merged.tensor.numpy(), _moved(merged))
        assert merged.provenance.image_matrix is None and merged.is_recorded()

    def test_parts_of_one_image_keep_its_matrix(self):
        boxes = _recorded()
        boxes.flip_(SHAPE)
        merged = boxes.cat([boxes[[0]], boxes[[2]]])
        np.testing.assert_array_equal(merged.provenance.image_matrix, boxes.provenance.image_matrix)

    def test_one_image_at_two_places_has_no_matrix(self):
        boxes, other = _recorded(), _recorded()
        other.translate_((1, 0))
        assert boxes.cat([boxes, other]).provenance.image_matrix is None

    def test_unknown_matrices_do_not_agree(self):
        boxes = _recorded()
        boxes.provenance = boxes.provenance.with_unknown_image()
        assert boxes.cat([boxes, boxes.clone()]).provenance.image_matrix is None

    def test_a_part_of_another_image_without_rows_counts(self):
        boxes = _recorded()
        assert boxes.cat([boxes, _recorded([], 9)]).provenance.image_matrix is None

    @pytest.mark.parametrize(
        'other', [HorizontalBoxes(torch.tensor(ROWS)), RecordedBoxes(torch.tensor(ROWS))]
    )
    def test_with_unrecorded_boxes_nothing_is_recorded(self, other):
        assert not RecordedBoxes.cat([_recorded(), other]).is_recorded()

    def test_merged_after_writing(self):
        boxes = _recorded()
        boxes.tensor[0, 0] = 0
        with pytest.raises(LostRecordError, match='written directly'):
            RecordedBoxes.cat([boxes, _recorded()])


class TestFromMasks:
    def test_coordinates_equal_the_stock_type(self):
        masks = _masks(ROWS)
        assert torch.equal(
            masks.get_bboxes(RecordedBoxes).tensor, masks.get_bboxes(HorizontalBoxes).tensor
        )

    def test_inherits_row_by_row(self):
        boxes = _recorded()
        boxes.flip_(SHAPE)
        made = _masks(boxes.tensor).get_bboxes(RecordedBoxes)
        assert not made.is_recorded()
        assert made.resolve(boxes) and made.is_recorded()
        assert made.provenance.source_ids.tolist() == [[4, 0], [4, 1], [4, 2]]
        np.testing.assert_array_equal(made.provenance.image_matrix, boxes.provenance.image_matrix)

    def test_inherits_after_filtering_and_merging(self):
        boxes, pasted = _recorded(), _recorded(ROWS[:1], 9)
        boxes.flip_(SHAPE)
        made = _masks(boxes.tensor).get_bboxes(RecordedBoxes)
        merged = pasted.cat([made[np.array([False, True, True])], pasted])
        assert not merged.is_recorded()
        assert merged.resolve(boxes)
        assert merged.provenance.source_ids.tolist() == [[4, 1], [4, 2], [9, 0]]
        assert merged.provenance.image_id == 4 and merged.provenance.image_matrix is None
        np.testing.assert_allclose(merged.tensor.numpy(), _moved(merged))

    def test_only_pasted_rows_are_left(self):
        """The image itself had no boxes."""
        empty, pasted = _recorded([], 4), _recorded(ROWS[:1], 9)
        merged = pasted.cat([_masks([]).get_bboxes(RecordedBoxes), pasted])
        assert merged.resolve(empty)
        assert merged.provenance.source_ids.tolist() == [[9, 0]]
        assert merged.provenance.image_id == 4

    @pytest.mark.parametrize('rows', [ROWS[:2], [*ROWS, ROWS[0]], []])
    def test_another_number_of_masks_inherits_nothing(self, rows):
        made = _masks(rows).get_bboxes(RecordedBoxes)
        assert not made.resolve(_recorded()) and not made.is_recorded()

    def test_nothing_is_inherited_from_an_unrecorded_set(self):
        made = _masks(ROWS).get_bboxes(RecordedBoxes)
        assert not made.resolve(RecordedBoxes(torch.tensor(ROWS)))

    def test_resolving_a_recorded_set_changes_nothing(self):
        boxes = _recorded()
        provenance = boxes.provenance
        assert boxes.resolve(_recorded(ROWS, 9)) and boxes.provenance is provenance


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
        boxes = _recorded()
        write(boxes)
        assert boxes.written_behind()
        with pytest.raises(LostRecordError, match='written directly'):
            getattr(boxes, method)(*args)

    @pytest.mark.parametrize('write', WRITES)
    @pytest.mark.parametrize(
        'duplicate', [RecordedBoxes.clone, lambda boxes: pickle.loads(pickle.dumps(boxes))]
    )
    def test_a_copy_does_not_hide_it(self, duplicate, write):
        boxes = _recorded()
        write(boxes)
        assert duplicate(boxes).written_behind()
        assert duplicate(duplicate(boxes)).written_behind()

    def test_reading_is_no_writing(self):
        boxes = _recorded()
        boxes.numpy().sum(), boxes.tensor[0], boxes.areas, boxes.centers, boxes[1]
        boxes.is_inside(SHAPE), boxes.create_masks(SHAPE), str(boxes), boxes.tensor.numpy()
        assert not boxes.written_behind()

    def test_in_inference_mode(self):
        with torch.inference_mode():
            boxes = _recorded()
            boxes.translate_((1, 1))
            assert boxes.is_recorded()
            boxes.tensor[0, 0] += 1
            assert boxes.written_behind()
