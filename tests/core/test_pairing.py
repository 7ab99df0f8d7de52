"""Pairing: group ids against naive twins, ties, and no waiting for the device."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_iou

from lt_mm.core import pairing
from lt_mm.core.consistency import (
    bernoulli_consistency,
    box_consistency,
    categorical_consistency,
    mask_consistency,
    side_consistency,
)
from lt_mm.core.geometry import masks_to_source, pairwise_iou, side_positions_to_source
from lt_mm.core.pairing import (
    UNPAIRED,
    annotation_of_target,
    best_of_annotations,
    compact_ids,
    compact_rows,
    greedy_iou_groups,
    greedy_iou_pairs,
    group_hulls,
    group_sizes,
    groups_across_replicas,
    iou_groups,
    is_paired,
    nearest_in_each_replica,
    paired_groups,
    same_source_by_area,
)
from tests import reference_losses as reference

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]

_many = settings(max_examples=100, deadline=None)
_some = settings(max_examples=30, deadline=None)

# Few values, so that groups form; huge ones, so that no id can serve as an index.
any_id = st.sampled_from([-5, -1, 0, 1, 2, 7, 2**40, LARGEST, LARGEST - 1, SMALLEST])
few = st.integers(0, 3)


def _ids(values, *shape):
    return torch.tensor(values, dtype=torch.int64).reshape(shape or (-1,))


def _tuples(*columns):
    return st.lists(st.tuples(*columns), max_size=25)


@contextmanager
def _saved_tensors():
    """What operations keep for a backward pass."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        yield saved


class TestCompactIds:
    @_many
    @given(ids=st.lists(any_id | st.integers(SMALLEST, LARGEST), max_size=40))
    def test_equals_numpy(self, ids):
        expected = np.unique(np.array(ids, dtype=np.int64), return_inverse=True)[1]
        numbers = compact_ids(_ids(ids))
        assert numbers.dtype == torch.int64
        assert numbers.tolist() == expected.tolist()

    @pytest.mark.parametrize('dtype', INTEGERS)
    def test_types(self, dtype):
        numbers = compact_ids(torch.tensor([100, 3, 100, 0], dtype=dtype))
        assert numbers.dtype == torch.int64
        assert numbers.tolist() == [2, 1, 2, 0]

    @_many
    @given(
        rows=st.integers(1, 3).flatmap(
            lambda k: st.lists(st.lists(any_id, min_size=k, max_size=k), min_size=1, max_size=30)
        )
    )
    def test_rows_equal_numpy(self, rows):
        expected = np.unique(np.array(rows, dtype=np.int64), axis=0, return_inverse=True)[1]
        # The order of the numbers is numpy's too: by the first column, then the next.
        numbers = compact_rows(_ids(rows, len(rows), -1))
        assert numbers.tolist() == expected.ravel().tolist()

    @pytest.mark.parametrize('columns', [1, 2, 3])
    def test_no_rows(self, columns):
        assert compact_rows(_ids([], 0, columns)).shape == (0,)

    def test_many_rows(self):
        """5,000 of them: products of numbers stay far below 2^63."""
        rows = torch.randint(-2, 30, (5000, 4))
        expected = np.unique(rows.numpy(), axis=0, return_inverse=True)[1]
        assert compact_rows(rows).tolist() == expected.ravel().tolist()


class TestPairedGroups:
    @pytest.mark.parametrize('free', [True, False])
    @_some
    @given(ids=st.lists(any_id, max_size=40))
    def test_equals_lists(self, free, ids):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pairing, '_counting_is_free', lambda tensor: free)
            numbers, sizes, paired = paired_groups(_ids(ids))
        alike = [ids.count(i) if i >= 0 else 0 for i in ids]
        distinct = sorted({i for i, count in zip(ids, alike) if count > 1})
        most = len(distinct) if free else len(ids) // 2
        assert numbers.tolist() == [
            distinct.index(i) if count > 1 else most for i, count in zip(ids, alike)
        ]
        assert paired.tolist() == [count > 1 for count in alike]
        rest = [0] * (most - len(distinct))
        assert sizes.tolist() == [*map(ids.count, distinct), *rest, len(ids) - sum(paired.tolist())]

    @pytest.mark.parametrize('dtype', INTEGERS)
    def test_types(self, dtype):
        numbers, sizes, _ = paired_groups(torch.tensor([7, 3, 7], dtype=dtype))
        assert numbers.tolist() == [0, 1, 0] and sizes.tolist() == [2, 1]


class TestGroupSizes:
    @_many
    @given(ids=st.lists(any_id, max_size=30))
    def test_equals_counting(self, ids):
        expected = [ids.count(value) if value >= 0 else 0 for value in ids]
        sizes = group_sizes(_ids(ids))
        assert sizes.dtype == torch.int64
        assert sizes.tolist() == expected
        assert is_paired(_ids(ids)).tolist() == [
            bool(reference.positives(ids, i)) for i in range(len(ids))
        ]

    @pytest.mark.parametrize('dtype', INTEGERS)
    def test_types(self, dtype):
        assert group_sizes(torch.tensor([7, 3, 7], dtype=dtype)).tolist() == [2, 1, 2]


class TestAcrossReplicas:
    @_many
    @given(rows=_tuples(few | any_id, few, any_id | few, st.booleans()))
    def test_equals_dict_of_lists(self, rows):
        instances = [row[:2] for row in rows]
        replicas, keep = [row[2] for row in rows], [row[3] for row in rows]
        groups = groups_across_replicas(
            _ids(instances, -1, 2), _ids(replicas), torch.tensor(keep, dtype=torch.bool)
        )
        assert groups.dtype == torch.int64
        assert all(UNPAIRED <= group < len(rows) for group in groups.tolist())
        assert reference.same_partition(groups) == reference.same_partition(
            reference.across_replicas(instances, replicas, keep)
        )

    @pytest.mark.parametrize('dtype', INTEGERS)
    def test_types(self, dtype):
        groups = groups_across_replicas(
            torch.tensor([[4], [9], [4], [9]], dtype=dtype),
            torch.tensor([0, 1, 2, 1], dtype=dtype),
            torch.ones(4, dtype=torch.bool),
        )
        assert reference.same_partition(groups) == [0, -1, 0, -1]

    def test_one_replica_pairs_nothing(self):
        groups = groups_across_replicas(
            _ids([5] * 6, 6, 1), _ids([3] * 6), torch.ones(6, dtype=torch.bool)
        )
        assert groups.tolist() == [UNPAIRED] * 6

    def test_all_predictions_of_an_instance_pair_once_there_are_two_replicas(self):
        groups = groups_across_replicas(
            _ids([5] * 4, 4, 1), _ids([3, 3, 3, 8]), torch.ones(4, dtype=torch.bool)
        )
        assert reference.same_partition(groups) == [0, 0, 0, 0]

    def test_what_is_not_kept_counts_for_nobody(self):
        """The instance is visible in one replica only, so it has no partner there."""
        groups = groups_across_replicas(
            _ids([5, 5, 5], 3, 1), _ids([0, 1, 0]), torch.tensor([True, False, True])
        )
        assert groups.tolist() == [UNPAIRED] * 3


class TestNearest:
    @_many
    @given(rows=_tuples(any_id, any_id, st.sampled_from([0.0, 0.5, 1.0, 9.0, np.inf])))
    def test_equals_resort(self, rows):
        groups, replicas, distances = ([row[i] for row in rows] for i in range(3))
        nearest = nearest_in_each_replica(
            _ids(groups), _ids(replicas), torch.tensor(distances, dtype=torch.float64)
        )
        assert nearest.tolist() == reference.resort(groups, replicas, distances)

    def test_first_of_equally_near_ones(self):
        nearest = nearest_in_each_replica(
            _ids([4, 4, 4, 4, 4]), _ids([1, 0, 1, 0, 1]), torch.tensor([3.0, 2.0, 1.0, 2.0, 1.0])
        )
        assert nearest.tolist() == [UNPAIRED, 4, 4, UNPAIRED, UNPAIRED]

    def test_unpaired_stay_unpaired(self):
        nearest = nearest_in_each_replica(_ids([-1, 2, -1]), _ids([0, 0, 0]), torch.zeros(3))
        assert nearest.tolist() == [UNPAIRED, 2, UNPAIRED]

    def test_keeps_nothing_for_a_gradient(self):
        distances = torch.rand(3, requires_grad=True)
        with _saved_tensors() as saved:
            nearest_in_each_replica(_ids([0, 0, 1]), _ids([0, 0, 0]), distances)
        assert saved == []

    def test_one_for_each_group_and_replica(self):
        groups, replicas = torch.randint(0, 5, (400,)), torch.randint(0, 4, (400,))
        nearest = nearest_in_each_replica(groups, replicas, torch.rand(400))
        cells = list(zip(nearest.tolist(), replicas.tolist()))
        kept = [cell for cell in cells if cell[0] >= 0]
        assert len(kept) == len(set(kept)) == 20


# Whole pixels from a small range: identical boxes and equal IoUs are common, and IoUs
# are quotients of small integers, hence equal in every computation of them.
small_boxes = st.tuples(few, few, few, few).map(
    lambda v: [float(x) for x in (v[0], v[1], v[0] + v[2], v[1] + v[3])]
)
labelled_boxes = st.lists(st.tuples(small_boxes, st.integers(0, 1)), max_size=9)
some_boxes = st.lists(st.tuples(*[st.floats(0.5, 200)] * 4), max_size=8)


def _boxes(rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype).reshape(-1, 4)


def _split(labelled):
    return [box for box, _ in labelled], [label for _, label in labelled]


class TestHulls:
    @_many
    @given(rows=_tuples(small_boxes, any_id), shift=st.sampled_from([-9, 0, 9]))
    def test_equals_reference(self, rows, shift):
        """Restored boxes may lie beyond any edge of the source image."""
        boxes = [[x + shift for x in row[0]] for row in rows]
        groups = [row[1] for row in rows]
        hulls = group_hulls(_boxes(boxes), _ids(groups))
        assert hulls.tolist() == reference.hulls(boxes, groups)

    def test_by_hand(self):
        boxes = [[0, 5, 4, 9], [1, 1, 2, 2], [-3, 6, 1, 7]]
        assert group_hulls(_boxes(boxes), _ids([8, 3, 8])).tolist() == [
            [-3, 5, 4, 9],
            [1, 1, 2, 2],
            [-3, 5, 4, 9],
        ]

    def test_a_box_that_is_no_number_stays_in_its_group(self):
        boxes = _boxes([[0, 0, 4, 4], [np.nan] * 4, [1, 1, 5, 5], [-np.inf, 0, 1, np.inf]])
        hulls = group_hulls(boxes, _ids([2, -1, 2, 7]))
        assert hulls[[0, 2]].tolist() == [[0, 0, 5, 5]] * 2
        assert hulls[3].tolist() == [-np.inf, 0, 1, np.inf]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
    def test_types(self, dtype):
        hulls = group_hulls(_boxes([[0, 0, 4, 4], [1, 1, 5, 5]], dtype), _ids([0, 0]))
        assert hulls.dtype == dtype
        assert hulls.tolist() == [[0, 0, 5, 5]] * 2

    def test_no_boxes(self):
        assert group_hulls(_boxes([]), _ids([])).shape == (0, 4)


def _annotations(targets, target_labels, gt, gt_labels):
    rows = annotation_of_target(_boxes(targets), _ids(target_labels), _boxes(gt), _ids(gt_labels))
    assert rows.dtype == torch.int64
    return rows.tolist()


class TestAnnotationOfTarget:
    @_many
    @given(
        gt=st.lists(st.tuples(small_boxes, few), min_size=1, max_size=8),
        picks=st.lists(st.integers(0, 99), max_size=12),
        seed=st.integers(0, 99),
    )
    def test_equals_reference(self, gt, picks, seed):
        """Whole pixels from a small range: annotations with equal boxes are common."""
        boxes, labels = _split(gt)
        rounding = np.random.default_rng(seed).uniform(-1e-3, 1e-3, (len(picks), 4))
        made_from = [pick % len(gt) for pick in picks]
        targets = [np.add(boxes[row], error).tolist() for row, error in zip(made_from, rounding)]
        target_labels = [labels[row] for row in made_from]
        expected = [
            reference.annotation(*target, boxes, labels) for target in zip(targets, target_labels)
        ]
        assert _annotations(targets, target_labels, boxes, labels) == expected

    def test_the_label_decides_between_equal_boxes_only(self):
        gt = [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 5]]
        targets = [gt[0], gt[0], gt[2], gt[2], gt[0]]
        # The fourth is the third annotation's box with a label of others, as a class
        # agnostic target has it; nobody has the fifth's label.
        assert _annotations(targets, [7, 3, 5, 7, 9], gt, [7, 3, 5]) == [0, 1, 2, 2, 0]

    def test_the_label_decides_in_spite_of_rounding(self):
        """Boxes a thousandth of a pixel apart are one, half a pixel apart are two."""
        target = torch.tensor([[300.1, 200.2, 700.3, 800.4]])
        for error, row in ((1e-3, 1), (0.5, 0)):
            gt = torch.cat([target, target + torch.tensor([error, 0, 0, -error])])
            found = annotation_of_target(target, _ids([5]), gt, _ids([3, 5]))
            assert found.tolist() == [row]

    def test_first_of_equal_annotations(self):
        box = [[0, 0, 4, 4]]
        assert _annotations(box * 2, [3, 3], box * 3, [1, 3, 3]) == [1, 1]

    def test_any_side_tells_annotations_apart(self):
        gt = np.tile([10.0, 20, 30, 40], (5, 1))
        gt[range(4), range(4)] += 0.5
        assert _annotations(gt, [0] * 5, gt, [0] * 5) == [0, 1, 2, 3, 4]

    def test_rounding_of_float32(self):
        """Targets that a coder encoded and decoded again, far from the origin."""
        corner, anchor = 4000 + 100 * torch.rand(30, 2), torch.tensor([4035.7, 4011.3])
        gt = torch.cat([corner, corner + 20 + 50 * torch.rand(30, 2)], dim=1)
        center = (gt[:, :2] + gt[:, 2:] - 2 * anchor) / 2 / 37 * 37 + anchor
        half = ((gt[:, 2:] - gt[:, :2]) / 37).log().exp() * 37 / 2
        targets = torch.cat([center - half, center + half], dim=1)
        labels = torch.arange(30) % 3
        assert not torch.equal(targets, gt)
        rows = annotation_of_target(targets, labels, gt, labels)
        assert rows.tolist() == list(range(30))

    @pytest.mark.parametrize('annotations', [0, 3])
    def test_no_targets(self, annotations):
        assert _annotations([], [], [[0, 0, 4, 4]] * annotations, [0] * annotations) == []


class TestBestOfAnnotations:
    def test_against_a_loop(self):
        corners = 20 * torch.rand(12, 2)
        boxes = torch.cat([corners, corners + 1 + 15 * torch.rand(12, 2)], dim=1)
        gt, scores = boxes[:3] + 3, torch.rand(12, 3)
        for k, row in enumerate(best_of_annotations(scores, boxes, gt).tolist()):
            values = [
                float(score) * reference.iou(box.tolist(), gt[k].tolist())
                for score, box in zip(scores[:, k], boxes)
            ]
            assert values[row] == max(values) > 0

    def test_the_nearest_where_none_overlaps(self):
        boxes = _boxes([[0, 0, 1, 1], [5, 0, 6, 1], [float('nan')] * 4, [20, 0, 22, 1]])
        scores = torch.tensor([[0.9], [0.1], [1.0], [0.9]])
        assert best_of_annotations(scores, boxes, _boxes([[8, 0, 9, 1]])).tolist() == [1]

    def test_no_annotation(self):
        assert best_of_annotations(torch.rand(4, 0), torch.rand(4, 4), torch.rand(0, 4)).shape == (
            0,
        )


def _pairs(boxes_a, boxes_b, labels_a, labels_b, *threshold):
    rows, columns = greedy_iou_pairs(
        _boxes(boxes_a), _boxes(boxes_b), _ids(labels_a), _ids(labels_b), *threshold
    )
    assert rows.dtype == columns.dtype == torch.int64
    return list(zip(rows.tolist(), columns.tolist()))


class TestIou:
    @_many
    @given(a=some_boxes, b=some_boxes)
    def test_equals_torchvision(self, a, b):
        a, b = (_boxes([[x, y, x + w, y + h] for x, y, w, h in rows]) for rows in (a, b))
        torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b), rtol=1e-12, atol=1e-14)

    @_many
    @given(a=st.lists(small_boxes, max_size=5), b=st.lists(small_boxes, max_size=5))
    def test_equals_reference_with_and_without_area(self, a, b):
        expected = [[reference.iou(x, y) for y in b] for x in a]
        ious = pairwise_iou(_boxes(a), _boxes(b))
        assert ious.shape == (len(a), len(b))
        assert ious.tolist() == expected

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        """An area of 1000 x 1000 pixels is beyond float16."""
        a = _boxes([[0, 0, 1000, 1000], [0, 0, 1200, 800]], dtype)
        torch.testing.assert_close(pairwise_iou(a, a), box_iou(a.float(), a.float()))

    def test_small_boxes(self):
        """Coordinates may be parts of an image; such areas are tiny."""
        a = _boxes([[0, 0, 1e-7, 1e-7], [0, 0, 1e-7, 5e-8]])
        expected = torch.tensor([[1, 0.5], [0.5, 1]]).double()
        torch.testing.assert_close(pairwise_iou(a, a), expected)

    def test_batch(self):
        a, b = (torch.rand(2, 3, n, 4).cumsum(dim=3) for n in (4, 5))
        ious = pairwise_iou(a, b)
        assert ious.shape == (2, 3, 4, 5)
        for i, j in np.ndindex(2, 3):
            torch.testing.assert_close(ious[i, j], box_iou(a[i, j], b[i, j]))

    @pytest.mark.parametrize('n, k', [(0, 3), (3, 0), (0, 0)])
    def test_batch_without_boxes(self, n, k):
        assert pairwise_iou(torch.rand(2, n, 4), torch.rand(2, k, 4)).shape == (2, n, k)

    def test_one_in_half_and_one_in_double_precision(self):
        a = torch.tensor([[0, 0, 1000, 1000.0]])
        for one, other in ((a.half(), a.double()), (a.double(), a.half())):
            assert pairwise_iou(one, other).tolist() == [[1]]

    def test_inverted_box_overlaps_nothing(self):
        assert not pairwise_iou(_boxes([[5, 5, 1, 1]]), _boxes([[0, 0, 9, 9]])).any()


class TestSameSource:
    @pytest.mark.parametrize(
        'a, b, threshold, expected',
        [
            ([[0, 0, 10, 10]], [[50, 50, 60, 60]], 1.0, True),  # wherever they are
            ([[0, 0, 10, 10]], [[0, 0, 10, 8]], 0.8, True),  # the ratio is exactly 0.8
            ([[0, 0, 10, 10]], [[0, 0, 10, 8]], 0.81, False),
            ([[0, 0, 10, 10]], [[0, 0, 10, 79]], 0.01, True),
            # The sum of all areas counts, not their number: 100 and 64 + 36.
            ([[0, 0, 10, 10]], [[0, 0, 8, 8], [0, 0, 6, 6]], 1.0, True),
            ([[0, 0, 10, 10], [0, 0, 10, 10]], [[0, 0, 10, 10]], 0.51, False),
            # Inverted sides have no area, not a negative one.
            ([[0, 0, 10, 10], [9, 9, 4, 4], [9, 0, 4, 5]], [[0, 0, 10, 10]], 1.0, True),
            ([], [[0, 0, 10, 10]], 0.1, False),
            ([], [], 0.8, False),
            ([[3, 3, 3, 9]], [[5, 5, 5, 5]], 0.8, False),
            ([[np.nan, 0, 9, 9]], [[0, 0, 9, 9]], 0.8, False),
        ],
    )
    def test_by_hand(self, a, b, threshold, expected):
        for one, other in ((a, b), (b, a)):
            same = same_source_by_area(_boxes(one), _boxes(other), threshold)
            assert same.dtype == torch.bool and same.shape == ()
            assert same.item() is expected

    def test_default_threshold(self):
        box = _boxes([[0, 0, 10, 10]])
        assert same_source_by_area(box, _boxes([[0, 0, 10, 8.01]]))
        assert not same_source_by_area(box, _boxes([[0, 0, 10, 7.99]]))

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        """Areas of 1000 x 1000 and 500 x 500 pixels are both beyond float16."""
        box = _boxes([[0, 0, 1000, 1000]], dtype)
        assert same_source_by_area(box, box)
        assert not same_source_by_area(box, box / 2)

    @pytest.mark.parametrize('threshold', [0, -0.5, 1.01, np.nan])
    def test_threshold(self, threshold):
        box = _boxes([[0, 0, 1, 1]])
        with pytest.raises(ValueError, match=f'threshold is {threshold};'):
            same_source_by_area(box, box, threshold)


class TestGreedyPairs:
    @settings(max_examples=300, deadline=None)
    @given(a=labelled_boxes, b=labelled_boxes, threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    def test_equals_one_by_one(self, a, b, threshold):
        (boxes_a, labels_a), (boxes_b, labels_b) = _split(a), _split(b)
        args = boxes_a, boxes_b, labels_a, labels_b, threshold
        assert _pairs(*args) == reference.greedy_pairs(*args)

    @_many
    @given(kinds=st.lists(st.integers(0, 2), max_size=12), seed=st.integers(0, 99))
    def test_ties_go_by_row_then_column(self, kinds, seed):
        """Every box comes several times over, in both replicas."""
        shapes = [[0, 0, 4, 4], [1, 0, 5, 4], [0, 1, 4, 5]]
        order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
        boxes_a = [shapes[kind] for kind in kinds]
        boxes_b = [boxes_a[i] for i in order.tolist()]
        labels = [0] * len(kinds)
        args = boxes_a, boxes_b, labels, labels, 0.3
        assert _pairs(*args) == reference.greedy_pairs(*args)

    def test_identical_boxes_pair_in_order(self):
        box = [[0, 0, 4, 4]]
        assert _pairs(box * 3, box * 2, [0] * 3, [0] * 2) == [(0, 0), (1, 1)]
        assert _pairs(box * 2, box * 3, [0] * 2, [0] * 3) == [(0, 0), (1, 1)]

    def test_best_pair_first(self):
        """Row 0 has IoU 0.6 with the box that row 1 equals, so it gets nothing."""
        a, b = [[0, 0, 10, 6], [0, 0, 10, 10]], [[0, 0, 10, 10]]
        assert _pairs(a, b, [0, 0], [0]) == [(1, 0)]

    def test_second_choice(self):
        a = [[0, 0, 10, 8], [0, 0, 10, 10]]
        b = [[0, 0, 10, 10], [0, 0, 10, 6]]
        assert _pairs(a, b, [0, 0], [0, 0]) == [(0, 1), (1, 0)]

    def test_chain_is_unwound_one_step_at_a_time(self):
        """Each box prefers the next one, and only the last preference is mutual."""
        a = [[0, 0, 10, 10 + 2 * i] for i in range(6)]
        b = [[0, 0, 10, 11.1 + 2 * i] for i in range(6)]
        args = a, b, [0] * 6, [0] * 6, 0.2
        assert _pairs(*args) == reference.greedy_pairs(*args)
        assert len(_pairs(*args)) == 6

    def test_class(self):
        box = [[0, 0, 4, 4]]
        assert _pairs(box, box, [1], [2]) == []
        assert _pairs(box * 2, box * 2, [1, 2], [2, 1]) == [(0, 1), (1, 0)]

    @pytest.mark.parametrize('threshold, expected', [(0.49, [(0, 0)]), (0.5, [(0, 0)]), (0.51, [])])
    def test_threshold(self, threshold, expected):
        """The IoU is exactly 1/2."""
        args = [[0, 0, 4, 4]], [[0, 0, 4, 2]], [0], [0]
        assert _pairs(*args, threshold) == expected

    def test_default_threshold(self):
        args = [[0, 0, 100, 100]], [[0, 0, 100, 49]], [0], [0]
        assert _pairs(*args) == []
        assert _pairs([[0, 0, 100, 50]], *args[:1], [0], [0]) == [(0, 0)]

    @pytest.mark.parametrize('threshold', [0.0, -1.0])
    def test_boxes_apart_never_pair(self, threshold):
        args = [[0, 0, 4, 4]], [[4, 0, 8, 4]], [0], [0]
        assert _pairs(*args, threshold) == []

    @pytest.mark.parametrize('n, k', [(0, 0), (0, 3), (3, 0)])
    def test_empty(self, n, k):
        assert _pairs([[0, 0, 4, 4]] * n, [[0, 0, 4, 4]] * k, [0] * n, [0] * k) == []

    def test_boxes_without_an_area_or_a_number_pair_with_nothing(self):
        odd = [[0, 0, 0, 0], [3, 3, 1, 1], [np.nan, 0, 4, 4], [0, 0, 4, 4]]
        assert _pairs(odd, odd, [0] * 4, [0] * 4) == [(3, 3)]

    def test_many_boxes_each_once(self):
        corner, sides = 60 * torch.rand(2, 80, 2), 5 + 30 * torch.rand(2, 80, 2)
        a, b = torch.cat([corner, corner + sides], dim=2).double()
        labels = torch.randint(0, 3, (2, 80))
        pairs = _pairs(a.tolist(), b.tolist(), *labels.tolist(), 0.1)
        assert pairs == reference.greedy_pairs(a.tolist(), b.tolist(), *labels.tolist(), 0.1)
        rows, columns = zip(*pairs)
        assert len(set(rows)) == len(set(columns)) == len(pairs) > 30

    def test_keeps_nothing_for_a_gradient_and_leaves_its_inputs(self):
        boxes = _boxes([[0, 0, 4, 4], [0, 0, 4, 3]]).requires_grad_()
        before = boxes.detach().clone()
        with _saved_tensors() as saved:
            rows, _ = greedy_iou_pairs(boxes, boxes, _ids([0, 0]), _ids([0, 0]))
        assert saved == []
        assert rows.tolist() == [0, 1]
        assert torch.equal(boxes.detach(), before)


def _groups(boxes, labels=None, *threshold):
    labels = labels or [[0] * len(own) for own in boxes]
    groups = greedy_iou_groups(
        [_boxes(own) for own in boxes], [_ids(own) for own in labels], *threshold
    )
    assert all(own.dtype == torch.int64 for own in groups)
    return [own.tolist() for own in groups]


LEFT, RIGHT, FAR = [0, 0, 10, 10], [100, 0, 110, 10], [500, 500, 540, 540]


class TestGreedyGroups:
    def test_three_replicas_in_different_orders(self):
        groups = _groups([[LEFT, RIGHT], [RIGHT, LEFT], [FAR, RIGHT, LEFT]])
        assert groups == [[0, 1], [1, 0], [2, 1, 0]]

    def test_instance_that_the_first_replica_lacks(self):
        assert _groups([[LEFT], [FAR, LEFT], [LEFT, FAR]]) == [[0], [1, 0], [0, 1]]

    def test_instance_that_the_second_replica_lacks(self):
        assert _groups([[LEFT, FAR], [LEFT], [FAR, LEFT]]) == [[0, 1], [0], [1, 0]]

    def test_joins_the_mean_of_a_group_not_its_first_box(self):
        # IoU of the third box with the first is 10/21; with their mean, 15/21.
        boxes = [[[0, 0, 10, 10]], [[0, 0, 10, 20]], [[0, 0, 10, 21]]]
        assert _groups(boxes) == [[0], [0], [0]]
        assert _groups([boxes[0], boxes[2]]) == [[0], [1]]

    def test_mean_weighs_the_members_alike(self):
        # The mean of 10, 10 and 19 is 13 high: 13/26 = 1/2, while (10 + 19) / 2 is
        # 14.5 high and 14.5/26 is above the threshold.
        heights = [10, 10, 19, 26]
        boxes = [[[0, 0, 10, height]] for height in heights]
        assert _groups(boxes, None, 0.51) == [[0], [0], [0], [1]]
        assert _groups(boxes, None, 0.5) == [[0], [0], [0], [0]]

    def test_class(self):
        groups = _groups([[LEFT], [LEFT], [LEFT, LEFT]], [[0], [1], [1, 0]])
        assert groups == [[0], [1], [1, 0]]

    def test_one_box_of_a_replica_in_a_group(self):
        groups = _groups([[LEFT], [LEFT, LEFT], [LEFT, LEFT, LEFT]])
        assert groups == [[0], [0, 1], [0, 1, 2]]

    @pytest.mark.parametrize(
        'boxes, expected',
        [
            ([[]], [[]]),
            ([[], []], [[], []]),
            ([[], [LEFT], [LEFT]], [[], [0], [0]]),
            ([[LEFT], [], [LEFT]], [[0], [], [0]]),
            ([[LEFT, FAR]], [[0, 1]]),
        ],
    )
    def test_empty_and_single(self, boxes, expected):
        assert _groups(boxes) == expected

    def test_keeps_nothing_for_a_gradient_and_leaves_its_inputs(self):
        boxes = [_boxes([LEFT]).requires_grad_(), _boxes([LEFT, FAR]).requires_grad_()]
        with _saved_tensors() as saved:
            groups = greedy_iou_groups(boxes, [_ids([0]), _ids([0, 0])])
        assert saved == []
        assert [own.tolist() for own in groups] == [[0], [0, 1]]
        assert torch.equal(boxes[0].detach(), _boxes([LEFT]))


def _batch(sizes, num_boxes, seed):
    """Boxes, labels and valid slots of sources with so many replicas each.

    Around few places, in whole pixels: groups, ties and second choices are common. The
    replicas are in any order, and some belong to no source.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(sum(sizes) + 2)
    members = np.full((len(sizes), max(sizes, default=0)), UNPAIRED)
    for row, end in zip(range(len(sizes)), np.cumsum(sizes)):
        size = sizes[row]
        members[row, random.permutation(members.shape[1])[:size]] = order[end - size : end]
    slots = len(order), num_boxes
    low = random.choice([0, 3, 20], (*slots, 1)) + random.integers(0, 3, (*slots, 2))
    boxes = np.concatenate([low, low + random.integers(6, 9, (*slots, 2))], axis=2)
    labels, valid = random.random((2, *slots)) < [[[0.2]], [[0.8]]]
    return boxes.astype(float), labels.astype(int), valid, members


def _iou_groups(boxes, labels, valid, members, *threshold):
    groups = iou_groups(
        torch.tensor(boxes),
        torch.tensor(labels),
        torch.tensor(valid),
        torch.tensor(members),
        *threshold,
    )
    assert groups.dtype == torch.int64 and groups.shape == labels.shape
    return groups


def _partition(groups):
    return reference.same_partition(groups.flatten())


replicas_of_sources = st.lists(st.integers(0, 4), min_size=1, max_size=3)


class TestIouGroups:
    @_many
    @given(
        sizes=replicas_of_sources,
        num_boxes=st.integers(0, 5),
        threshold=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0]),
        seed=st.integers(0, 9999),
    )
    def test_equals_one_by_one(self, sizes, num_boxes, threshold, seed):
        batch = _batch(sizes, num_boxes, seed)
        groups = _iou_groups(*batch, threshold)
        expected = reference.iou_groups(*(part.tolist() for part in batch), threshold)
        assert _partition(groups) == reference.same_partition(np.ravel(expected))

    def test_the_batches_have_groups_of_all_sizes(self):
        """What is compared above is no empty case."""
        groups = _iou_groups(*_batch([4, 3, 4], 5, 0), 0.5)
        sizes = group_sizes(groups.flatten()).tolist()
        assert set(sizes) == {0, 1, 2, 3, 4}

    @_some
    @given(sizes=replicas_of_sources, num_boxes=st.integers(1, 5), seed=st.integers(0, 9999))
    def test_what_is_not_valid_influences_nothing(self, sizes, num_boxes, seed):
        boxes, labels, valid, members = _batch(sizes, num_boxes, seed)
        groups = _iou_groups(boxes, labels, valid, members)
        assert (groups[~torch.tensor(valid)] == UNPAIRED).all()
        garbage = np.random.default_rng(seed)
        for fill in (np.nan, np.inf, 0.0, 1e300, boxes[garbage.permutation(len(boxes))]):
            other = np.where(valid[..., None], boxes, fill)
            named = np.where(valid, labels, garbage.integers(0, 2, labels.shape))
            assert torch.equal(groups, _iou_groups(other, named, valid, members))

    @_some
    @given(sizes=st.lists(st.integers(0, 4), min_size=2, max_size=3), seed=st.integers(0, 9999))
    def test_sources_do_not_mix(self, sizes, seed):
        """All have boxes at the same places; each groups as it would alone."""
        boxes, labels, valid, members = _batch(sizes, 4, seed)
        together = _iou_groups(boxes, labels, valid, members)
        seen = []
        for source in members:
            own = source[source != UNPAIRED]
            alone = _iou_groups(boxes, labels, valid, source[None])
            assert _partition(together[own]) == _partition(alone[own])
            seen.append(set(together[own].flatten().tolist()) - {UNPAIRED})
        assert len(set().union(*seen)) == sum(map(len, seen))
        nobody = np.setdiff1d(np.arange(len(boxes)), members)
        assert (together[nobody] == UNPAIRED).all()

    def test_each_box_of_a_replica_in_another_group(self):
        groups = _iou_groups(*_batch([4, 4, 3], 5, 1), 0.25)
        for own in groups.tolist():
            paired = [group for group in own if group != UNPAIRED]
            assert len(paired) == len(set(paired))

    def test_a_replica_that_is_missing_in_the_middle(self):
        boxes = np.array([[LEFT, FAR], [FAR, LEFT]], dtype=float)
        groups = _iou_groups(
            boxes, np.zeros((2, 2), int), np.ones((2, 2), bool), np.array([[-1, 1, -1, 0, -1]])
        )
        assert _partition(groups) == [0, 1, 1, 0]

    def test_a_missing_replica_is_not_the_last_one(self):
        """A replica of another source, whose box would bring the two others together."""
        heights = 10, 21, 16
        boxes = np.array([[[0, 0, 10, height]] for height in heights], dtype=float)
        labels, valid = np.zeros((3, 1), int), np.ones((3, 1), bool)
        groups = _iou_groups(boxes, labels, valid, np.array([[-1, 0, 1]]))
        assert _partition(groups) == [0, 1, -1]
        groups = _iou_groups(boxes, labels, valid, np.array([[2, 0, 1]]))
        assert _partition(groups) == [0, 0, 0]

    def test_a_box_that_is_no_number_is_alone(self):
        """Valid, as nobody noticed; it may not join, nor carry others away."""
        boxes = np.array([[LEFT, [np.nan] * 4], [[np.nan, 0, 10, 10], LEFT], [LEFT, LEFT]])
        groups = _iou_groups(
            boxes, np.zeros((3, 2), int), np.ones((3, 2), bool), np.array([[0, 1, 2]])
        )
        assert _partition(groups) == [0, 1, 2, 0, 0, 5]

    @pytest.mark.parametrize(
        'num_replicas, num_boxes, members',
        [
            (3, 0, [[0, 1], [2, -1]]),
            (3, 2, np.zeros((0, 2), int)),
            (3, 2, np.zeros((2, 0), int)),
            (3, 2, [[-1, -1]]),
            (0, 2, np.zeros((0, 0), int)),
        ],
    )
    def test_nothing_to_pair(self, num_replicas, num_boxes, members):
        slots = num_replicas, num_boxes
        groups = _iou_groups(
            np.ones((*slots, 4)), np.zeros(slots, int), np.ones(slots, bool), np.asarray(members)
        )
        assert groups.tolist() == [[UNPAIRED] * num_boxes] * num_replicas

    def test_default_threshold(self):
        boxes = np.array([[LEFT, FAR], [[0, 0, 10, 5.01], [500, 500, 540, 519.9]]])
        groups = _iou_groups(
            boxes, np.zeros((2, 2), int), np.ones((2, 2), bool), np.array([[0, 1]])
        )
        assert _partition(groups) == [0, 1, 0, 3]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        """The sum of 80 coordinates of 1000 pixels is beyond float16."""
        boxes = torch.tensor([900.0, 900, 1000, 1000]).expand(80, 1, 4).to(dtype)
        groups = iou_groups(
            boxes,
            torch.zeros(80, 1, dtype=torch.int64),
            torch.ones(80, 1, dtype=torch.bool),
            torch.arange(80)[None],
        )
        assert groups.flatten().tolist() == [0] * 80

    def test_keeps_nothing_for_a_gradient_and_leaves_its_inputs(self):
        batch = [torch.tensor(part) for part in _batch([3, 2], 4, 0)]
        batch[0].requires_grad_()
        before = [part.detach().clone() for part in batch]
        with _saved_tensors() as saved:
            groups = iou_groups(*batch)
        assert saved == [] and not groups.requires_grad
        assert all(map(torch.equal, batch, before))


class _NoWaiting(TorchDispatchMode):
    """Fails at operations whose result's size, or a number for the host, is in values.

    On an accelerator these make the host wait; so does a list that becomes a tensor.
    """

    WAITING = (
        '_local_scalar_dense',
        'item',
        'is_nonzero',
        'equal',
        'nonzero',
        'masked_select',
        'bincount',
        '_unique',
        '_unique2',
        'unique_dim',
        'unique_consecutive',
        'unique_dim_consecutive',
        'repeat_interleave',
    )
    INDEXING = ('index', 'index_put', 'index_put_', '_unsafe_index')

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in self.INDEXING and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bool, torch.uint8)
            for leaf in tree_leaves(args[1])
        )
        # `x[0] = 1` lifts a number too, but fills in place on the device.
        listed = name == 'lift_fresh' and args[0].dim() > 0
        if name in self.WAITING or masks or listed:
            raise AssertionError(f'{func} makes the host wait for the device')
        return func(*args, **(kwargs or {}))


def _backward(term, *shape):

    def run():
        predictions = torch.rand(9, *shape, requires_grad=True)
        term(predictions, torch.arange(9) % 4 - 1).backward()

    return run


def _masks(logits, ids):
    return mask_consistency(logits, torch.rand_like(logits) > 0.5, ids)


def _sides(logits, ids):
    return side_consistency(logits, torch.rand_like(logits), ids)


def _masks_to_source():
    masks, _ = masks_to_source(
        torch.rand(3, 5, 5, requires_grad=True),
        torch.rand(3, 4),
        torch.rand(3, 3, 3),
        torch.rand(3, 4),
        4,
    )
    masks.sum().backward()


_COLUMN = torch.tensor([4, -1, 4, 7, 7, 4])
_ROWS = torch.stack([_COLUMN, _COLUMN.flip(0)], dim=1)
SYNC_FREE = {
    'compact_ids': lambda: compact_ids(_COLUMN),
    'compact_rows': lambda: compact_rows(_ROWS),
    'group_sizes': lambda: group_sizes(_COLUMN),
    'is_paired': lambda: is_paired(_COLUMN),
    'groups_across_replicas': lambda: groups_across_replicas(
        _ROWS, torch.arange(6) % 2, _COLUMN > 0
    ),
    'nearest_in_each_replica': lambda: nearest_in_each_replica(
        _COLUMN, torch.arange(6) % 2, torch.rand(6)
    ),
    'group_hulls': lambda: group_hulls(torch.rand(6, 4), _COLUMN),
    'best_of_annotations': lambda: best_of_annotations(
        torch.rand(6, 2), torch.rand(6, 4), torch.rand(2, 4)
    ),
    'annotation_of_target': lambda: annotation_of_target(
        torch.rand(6, 4), _COLUMN, torch.rand(6, 4), _COLUMN
    ),
    'pairwise_iou': lambda: pairwise_iou(torch.rand(3, 4), torch.rand(2, 4)),
    'same_source_by_area': lambda: same_source_by_area(torch.rand(3, 4), torch.rand(2, 4)),
    'masks_to_source': _masks_to_source,
    'side_positions_to_source': lambda: side_positions_to_source(
        torch.rand(3, 2), torch.rand(3, 5), torch.rand(3, 3, 3)
    ),
    'categorical_consistency': _backward(categorical_consistency, 4),
    'bernoulli_consistency': _backward(bernoulli_consistency, 4),
    'box_consistency': _backward(box_consistency, 4),
    'mask_consistency': _backward(_masks, 3, 5),
    'side_consistency': _backward(_sides, 4, 5),
}
WAITS = {
    'item': lambda: _COLUMN.sum().item(),
    'bool': lambda: bool((_COLUMN > 0).any()),
    'nonzero': lambda: _COLUMN.nonzero(),
    'where': lambda: torch.where(_COLUMN > 0),
    'mask': lambda: _COLUMN[_COLUMN > 0],
    'write through a mask': lambda: _COLUMN.clone().index_put_((_COLUMN > 0,), torch.tensor(1)),
    'unique': lambda: _COLUMN.unique(),
    'rows': lambda: _ROWS.unique(dim=0),
    'counts': lambda: (_COLUMN + 1).bincount(),
    'equal': lambda: torch.equal(_COLUMN, _COLUMN),
    'greedy pairs': lambda: greedy_iou_pairs(
        torch.rand(2, 4), torch.rand(2, 4), torch.zeros(2), torch.zeros(2)
    ),
    'groups by IoU': lambda: iou_groups(
        torch.rand(2, 3, 4), torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.arange(2)[None]
    ),
    'numbers of the host': lambda: torch.tensor([1, 2]),
    'numbers beside a tensor': lambda: _COLUMN.new_tensor([1, 2]),
}


class TestDevice:
    @pytest.mark.parametrize('run', SYNC_FREE.values(), ids=SYNC_FREE)
    def test_does_not_wait(self, run, monkeypatch):
        monkeypatch.setattr(pairing, '_counting_is_free', lambda tensor: False)
        with _NoWaiting():
            run()

    @pytest.mark.parametrize('run', WAITS.values(), ids=WAITS)
    def test_the_watch_sees_waiting(self, run):
        with pytest.raises(AssertionError, match='makes the host wait'), _NoWaiting():
            run()

    def test_tensors_are_made_on_the_device_of_the_input(self):
        """A tensor without an explicit device would be made on the default one."""
        ids, kept = _ids([3, 3, 3]), torch.ones(3, dtype=torch.bool)
        boxes = [_boxes([LEFT, RIGHT]), _boxes([RIGHT, FAR, LEFT]), _boxes([FAR])]
        labels = [ids[: len(own)] for own in boxes]
        terms = categorical_consistency, bernoulli_consistency, box_consistency
        batch = [torch.tensor(part) for part in _batch([2, 1], 3, 0)]
        views, logits = torch.eye(3).expand(3, 3, 3).double(), torch.rand(3, 4, 5)
        with torch.device('meta'):
            made = [
                compact_ids(ids),
                group_sizes(ids),
                groups_across_replicas(ids[:, None], ids, kept),
                nearest_in_each_replica(ids, ids, ids.double()),
                *greedy_iou_pairs(boxes[0], boxes[1], labels[0], labels[1]),
                *greedy_iou_groups(boxes, labels),
                iou_groups(*batch),
                group_hulls(boxes[1], ids),
                annotation_of_target(boxes[1], ids, boxes[0], ids[:2]),
                same_source_by_area(boxes[0], boxes[1]),
                *masks_to_source(logits, boxes[1], views, boxes[1], 2),
                *side_positions_to_source(boxes[1][:, :2], boxes[1], views),
                mask_consistency(logits, logits > 0.5, ids),
                side_consistency(logits, logits, ids),
                *(term(boxes[1], ids) for term in terms),
            ]
        assert {tensor.device.type for tensor in made} == {'cpu'}
