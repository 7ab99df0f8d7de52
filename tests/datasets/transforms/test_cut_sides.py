"""Which sides of annotations a pipeline cuts, and that the box term leaves them out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope

from lt_mm.core.consistency import box_consistency
from lt_mm.core.geometry import boxes_to_source, is_axis_aligned
from lt_mm.core.pairing import UNPAIRED
from tests.datasets.transforms.pipeline_data import make_sample, pipeline_of, run

FLIPS = [dict(type='RandomFlip', prob=1.0, direction=name) for name in ('horizontal', 'vertical')]
POOL = [
    *FLIPS,
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='RandomCrop', crop_size=(0.6, 0.6), crop_type='relative_range'),
    dict(type='RandomShift', prob=1.0, max_shift_px=20),
    dict(type='RandomResize', scale=(120, 90), ratio_range=(0.5, 2.0), keep_ratio=False),
    dict(type='Expand', prob=1.0, ratio_range=(1, 2)),
    dict(type='MinIoURandomCrop'),
    dict(type='RandomAffine', max_rotate_degree=10.0),
]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def _instances(chain, seeds, masks=None):
    replicas = [run(pipeline_of(chain, masks), make_sample(sample_idx=3), seed) for seed in seeds]
    return [packed['data_samples'].gt_instances for packed in replicas if packed is not None]


def _term_of_targets(replicas):
    """The box term of predictions that equal their targets, and which sides are whole."""
    boxes = torch.cat([gt.bboxes.tensor for gt in replicas])
    matrices = torch.cat([gt.source_matrices for gt in replicas])
    rows = torch.cat([gt.source_ids[:, 1] for gt in replicas])
    cut = torch.cat([gt.cut_sides for gt in replicas])
    restored = boxes_to_source(boxes.double(), matrices)
    ids = torch.where(is_axis_aligned(matrices), rows, UNPAIRED)
    return (
        float(box_consistency(restored, ids, whole_sides=~cut)),
        float(box_consistency(restored, ids)),
        cut,
    )


@settings(max_examples=80, deadline=None)
@given(chain=st.lists(st.sampled_from(POOL), min_size=1, max_size=4), seed=st.integers(0, 2**20))
def test_predictions_equal_to_their_targets_cost_nothing(chain, seed):
    replicas = _instances(chain, [seed, seed + 1, seed + 2])
    if replicas:
        assert abs(_term_of_targets(replicas)[0]) < 1e-5


def test_targets_that_were_cut_differ():
    """Else the test before this one would hold of the whole boxes as well."""
    crop = dict(type='RandomCrop', crop_size=(30, 40))
    without, all_sides, cut = _term_of_targets(_instances([crop], range(6)))
    assert abs(without) < 1e-5 and all_sides > 0.05
    assert cut.any() and not cut.all()


def test_boxes_made_from_masks_are_whole_unless_cut():
    """Masks know whole pixels; that alone cuts nothing."""
    crop = dict(type='RandomCrop', crop_size=(55, 75), recompute_bbox=True)
    resize = dict(type='Resize', scale=(113, 77), keep_ratio=False)
    for gt in _instances([resize, crop], range(10), 'bitmap'):
        whole = boxes_to_source(gt.bboxes.tensor.double(), gt.source_matrices)
        annotated = torch.tensor([[5, 8, 30, 28], [44, 6, 72, 34], [20, 36, 58, 55]]).double()
        off = (whole - annotated[gt.source_ids[:, 1]]).abs()
        assert not gt.cut_sides[off < 1.4].any() and gt.cut_sides[off > 2.5].all()


@pytest.mark.parametrize(
    'chain, expected',
    [
        ([], [True, False, False, False]),
        ([FLIPS[0]], [True, False, False, False]),
        ([*FLIPS], [True, False, False, False]),
    ],
)
def test_sides_are_those_of_the_source(chain, expected):
    """The box (5, 8, 30, 28) loses its left side; what comes then changes no order."""
    replicas = []
    for seed in range(200):
        crop = dict(type='RandomCrop', crop_size=(60, 60))
        (gt,) = _instances([crop, *chain], [seed])
        row = (gt.source_ids[:, 1] == 0).nonzero()
        if len(row) and gt.visibility[row[0, 0]] < 0.95:
            replicas.append(gt.cut_sides[row[0, 0]].tolist())
    assert replicas and all(cut == expected for cut in replicas)


def test_a_paste_that_hides_a_part_cuts():
    """CopyPaste makes the boxes below from what is left of their masks."""
    from mmdet.structures.mask import BitmapMasks

    from lt_mm.core.geometry import cut_sides

    masks = np.zeros((2, 40, 60), np.uint8)
    masks[0, 10:30, 10:30] = 1
    masks[1, 0:40, 20:50] = 1
    below = masks[:1] * (1 - masks[1:])
    left = BitmapMasks(below, 40, 60).get_bboxes(dst_type='hbox').tensor.numpy()
    cut = cut_sides(left, np.array([[10.0, 10, 30, 30]]), np.eye(3)[None], np.array([True]))
    assert cut.tolist() == [[False, False, True, False]]
