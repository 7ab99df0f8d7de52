"""The contract of the invertible pipeline, against the source annotations and pixels."""

import copy
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys

import cv2
import mmcv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.transforms import BaseTransform, Compose, LoadImageFromFile
from mmdet.datasets import CocoDataset, MultiImageMixDataset
from mmdet.datasets.transforms import InstaBoost, Resize
from mmdet.engine.hooks import YOLOXModeSwitchHook
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from lt_mm.core import geometry
from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.structures.errors import LostRecordError
from lt_mm.structures.record import ImageRecord
from lt_mm.structures.recorded_boxes import RecordedBoxes
from tests import reference
from tests.datasets.transforms import transform_cases
from tests.datasets.transforms.pipeline_data import (
    BOXES,
    LABELS,
    PACK,
    SHAPE,
    LoadMadeImage,
    MadeDataset,
    all_instances,
    blob,
    lies_inside,
    loaders,
    make_sample,
    mixed_dataset,
    moved_annotation,
    paint,
    pipeline_of,
    polygon,
    run,
    seed_all,
)
from tests.datasets.transforms.transform_cases import CASES, EXACT, INEXACT, REFUSED
from tests.paths import DOCS, REPOSITORY

PIXEL = 0.01  # how well boxes must agree with the record
RENDERING = 1.5  # how well resampled pixels show where a box is
SEEDS = range(6)
FLIP = dict(type='RandomFlip', prob=1.0)
CROP = dict(type='RandomCrop', crop_size=(50, 40))
RESIZE = dict(type='Resize', scale=(120, 90), keep_ratio=True)

SINGLE = [case for case in CASES if not case.is_mixing and case.expected != REFUSED]
MIXING = [case for case in CASES if case.is_mixing]
by_name = dict(ids=lambda case: case.name if hasattr(case, 'name') else None)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def _is_axis_aligned(matrix):
    return bool(geometry.is_axis_aligned(torch.from_numpy(matrix)))


def _restored(box, matrix):
    """A replica's box in the source frame."""
    box, matrix = np.asarray(box, np.float64), np.asarray(matrix)
    return geometry.boxes_to_source(torch.from_numpy(box)[None], torch.from_numpy(matrix)[None])[
        0
    ].numpy()


def _check_instance(row, samples, shape, may_shrink=False, slack=PIXEL):
    """One packed instance against its source annotation.

    Args:
        row: From :func:`all_instances`.
        samples: Source id to sample.
        shape: (height, width) of the replica.
        may_shrink: Whether the box may be smaller than the moved one for more reasons
            than the edge of the replica.
        slack: By how much a box made from a mask may stick out.
    """
    image, index = row['source']
    annotation = np.array(samples[image]['instances'][index]['bbox'])
    moved = moved_annotation(row, samples)
    clipped = reference.clip_box(moved, shape)
    is_whole = np.abs(row['box'] - moved).max() <= PIXEL
    if may_shrink:
        is_line = reference.box_area(row['box']) == 0
        assert is_line or lies_inside(row['box'], moved, slack)
    else:
        assert is_whole or np.abs(row['box'] - clipped).max() <= PIXEL
    if _is_axis_aligned(row['matrix']):
        np.testing.assert_allclose(_restored(moved, row['matrix']), annotation, atol=1e-6)
        if is_whole:
            restored = _restored(row['box'], row['matrix'])
            scale = min(1, *np.abs(row['matrix'][:2, :2]).max(axis=1))
            np.testing.assert_allclose(restored, annotation, atol=PIXEL / scale)
    # Annotations are loaded in float32, which is coarse for a side of a few 1e-4 px.
    if min(moved[2] - moved[0], moved[3] - moved[1]) >= 0.05:
        expected = reference.visible_fraction(row['box'], moved, shape)
        assert row['visibility'] == pytest.approx(expected, abs=1e-3)


def _check_pixels(row, packed, samples, hides=False):
    """One instance against the pixels: channel i shows instance i of the image."""
    sample = packed['data_samples']
    moved = reference.clip_box(moved_annotation(row, samples), sample.recorded_shape)
    seen = blob(packed['inputs'], channel=row['source'][1])
    if seen is None:
        assert hides or (moved[2:] - moved[:2]).min() < 2 * RENDERING
        return
    assert lies_inside(seen, moved, RENDERING)
    if not hides and _is_axis_aligned(row['matrix']):
        np.testing.assert_allclose(seen, moved, atol=RENDERING)


class TestSingleImages:
    """Contract of every transform that works on one image."""

    @pytest.mark.parametrize('case', SINGLE, **by_name)
    def test_annotations(self, case):
        pipeline = pipeline_of(case.transforms, case.masks, case.to_float32)
        sample = make_sample(sample_idx=5)
        matrices = []
        # Few of the policies that AutoAugment draws from turn the image.
        for seed in range(40) if case.name == 'AutoAugment' else SEEDS:
            packed = run(pipeline, sample, seed)
            shape = packed['data_samples'].recorded_shape
            assert shape == tuple(packed['inputs'].shape[1:])
            for row in all_instances(packed):
                _check_instance(
                    row,
                    {5: sample},
                    shape,
                    case.recomputes,
                    slack=1.01 if case.masks == 'bitmap' else PIXEL,
                )
                matrices.append(row['matrix'])
        assert len(matrices) >= 5
        aligned = [_is_axis_aligned(matrix) for matrix in matrices]
        assert all(aligned) if case.expected == EXACT else not all(aligned)
        moved = any(not np.array_equal(matrix, np.eye(3)) for matrix in matrices)
        assert moved != case.is_still

    @pytest.mark.parametrize('case', [c for c in SINGLE if not c.is_still or c.hides], **by_name)
    def test_pixels(self, case):
        if 'Augment' in case.name:
            # Their policies change colours, which here say which instance is meant.
            case = _without_colours(case)
        pipeline = pipeline_of(case.transforms, case.masks, case.to_float32)
        sample = make_sample(sample_idx=5)
        for seed in SEEDS:
            packed = run(pipeline, sample, seed)
            for row in all_instances(packed):
                _check_pixels(row, packed, {5: sample}, case.hides)

    @pytest.mark.parametrize('case', SINGLE, **by_name)
    def test_without_boxes_the_image_matrix_is_right_or_absent(self, case):
        """The image has no annotation, but paint that shows where it went."""
        if 'Augment' in case.name:
            case = _without_colours(case)
        sample = make_sample([], [], image=paint(BOXES), sample_idx=5)
        transforms = copy.deepcopy(case.transforms)
        if transforms[0]['type'] == 'RandomCrop':
            transforms[0]['allow_negative_crop'] = True
        if transforms[0]['type'] == 'FilterAnnotations':
            transforms[0]['keep_empty'] = False
        pipeline = pipeline_of(transforms, case.masks, case.to_float32)
        known = []
        for seed in SEEDS:
            packed = run(pipeline, sample, seed)
            if packed is None:  # nested crops reject an image without boxes
                continue
            matrix = packed['data_samples'].get('source_matrix')
            known.append(matrix is not None)
            assert len(packed['data_samples'].gt_instances) == 0
            if matrix is not None and (not case.is_still or case.hides):
                _check_image_matrix(packed, matrix, case.hides)
            elif matrix is not None:
                assert np.array_equal(matrix, np.eye(3))
        assert known and set(known) == {case.without_boxes}

    @pytest.mark.parametrize('case', SINGLE, **by_name)
    def test_image_matrix_is_the_one_of_its_instances(self, case):
        pipeline = pipeline_of(case.transforms, case.masks, case.to_float32)
        packed = run(pipeline, make_sample(sample_idx=5))
        for row in all_instances(packed):
            np.testing.assert_array_equal(row['matrix'], packed['data_samples'].source_matrix)

    @pytest.mark.parametrize('case', [c for c in CASES if c.expected == REFUSED], **by_name)
    def test_refused(self, case):
        with pytest.raises(LostRecordError, match=case.transforms[0]['type']):
            run(pipeline_of(case.transforms), make_sample(sample_idx=5))

    @pytest.mark.parametrize('keep_ratio', [True, False])
    @pytest.mark.parametrize('shape', [(17, 11), (11, 17), (33, 57)])
    def test_odd_sizes(self, shape, keep_ratio):
        height, width = shape
        boxes = [(0, 0, width, height), (1, 2, width - 3, height - 2), (3, 3, 4, 4)]
        sample = make_sample(boxes, shape=shape, sample_idx=0)
        transforms = [
            dict(type='Resize', scale=(37, 23), keep_ratio=keep_ratio),
            FLIP,
            dict(type='RandomCrop', crop_size=(9, 7)),
        ]
        for seed in SEEDS:
            packed = run(pipeline_of(transforms), sample, seed)
            rows = all_instances(packed)
            assert rows
            for row in rows:
                _check_instance(row, {0: sample}, packed['data_samples'].recorded_shape)


def _without_colours(case):
    """The same policies with the geometric transforms alone."""
    geometric = ['Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY']
    space = [[dict(type=name, prob=1.0, img_border_value=0)] for name in geometric]
    key = dict(AutoAugment='policies', RandAugment='aug_space')[case.name]
    return transform_cases.Case(case.name, [{'type': case.name, key: space}], case.expected)


def _check_image_matrix(packed, matrix, hides):
    shape = packed['data_samples'].recorded_shape
    for channel, box in enumerate(BOXES):
        moved = reference.clip_box(reference.move_box(box, matrix), shape)
        seen = blob(packed['inputs'], channel)
        if seen is None:
            assert hides or (moved[2:] - moved[:2]).min() < 2 * RENDERING
            continue
        assert lies_inside(seen, moved, RENDERING)
        if not hides and _is_axis_aligned(matrix):
            np.testing.assert_allclose(seen, moved, atol=RENDERING)


def _mixing_samples():
    """Three images of one size; each has one instance in its own colour."""
    return [
        make_sample([box], [label], image=np.roll(paint([box]), channel, axis=2))
        for channel, (box, label) in enumerate(zip(BOXES, LABELS))
    ]


class TestMixing:
    """Transforms that merge images, through the stock ``MultiImageMixDataset``."""

    @pytest.mark.parametrize('wrapped', [True, False])
    @pytest.mark.parametrize('case', MIXING, **by_name)
    def test_annotations(self, case, wrapped):
        samples = [make_sample(), make_sample(BOXES[:2], [1, 4], ignored=[1]), make_sample([], [])]
        dataset = mixed_dataset(samples, [], case.transforms, wrapped, case.masks)
        seed_all(0)
        merged = 0
        for index in [0, 1, 2] * 8:
            packed = dataset[index]
            sample = packed['data_samples']
            rows = all_instances(packed)
            for row in rows:
                _check_instance(
                    row,
                    samples,
                    sample.recorded_shape,
                    case.recomputes,
                    slack=1.01 if case.name.startswith('CopyPaste') else PIXEL,
                )
            assert sample.source_id == index
            sources = {row['source'][0] for row in rows}
            if len(sources) > 1:
                merged += 1
                assert 'source_matrix' not in sample
        assert merged >= 2

    @pytest.mark.parametrize('wrapped', [True, False])
    @pytest.mark.parametrize('case', [c for c in MIXING if 'Paste' not in c.name], **by_name)
    def test_pixels(self, case, wrapped):
        samples = _mixing_samples()
        dataset = mixed_dataset(samples, [], case.transforms, wrapped)
        seed_all(1)
        for index in [0, 1, 2] * 4:
            packed = dataset[index]
            rows = all_instances(packed)
            for channel in range(3):
                boxes = [
                    moved_annotation(row, samples) for row in rows if row['source'][0] == channel
                ]
                _check_coverage(packed['inputs'], channel, boxes)

    def test_pasted_instances_lie_where_they_lay(self):
        samples = [
            make_sample(BOXES[:1], LABELS[:1]),
            make_sample(BOXES[1:], LABELS[1:], image=np.roll(paint(BOXES[1:]), 1, axis=2)),
        ]
        paste = [dict(type='CopyPaste', selected=False)]
        dataset = mixed_dataset(samples, [], paste, True, masks='bitmap')
        seed_all(0)
        packed = next(
            packed
            for packed in iter(lambda: dataset[0], None)
            if len(packed['data_samples'].gt_instances) == 3
        )
        for row in all_instances(packed):
            image, index = row['source']
            seen = blob(packed['inputs'], channel=image + index)
            np.testing.assert_allclose(seen, moved_annotation(row, samples), atol=1.01)

    def test_pasted_onto_an_image_without_boxes(self):
        samples = [make_sample([], []), make_sample()]
        dataset = mixed_dataset(
            samples, [], [dict(type='CopyPaste', selected=False)], True, masks='bitmap'
        )
        seed_all(0)
        seen = 0
        for _ in range(6):
            for row in all_instances(dataset[0]):
                _check_instance(row, samples, SHAPE, may_shrink=True, slack=1.01)
                seen += 1
        assert seen

    @pytest.mark.parametrize('wrapped', [True, False])
    def test_a_chain_of_mixtures(self, wrapped):
        samples = [
            make_sample(),
            make_sample(BOXES[1:], [5, 6], ignored=[0]),
            make_sample(BOXES[:1], [2]),
        ]
        inner = [dict(type='RandomCrop', crop_size=(60, 50)), FLIP]
        outer = [
            dict(type='Mosaic', img_scale=(70, 64)),
            dict(type='RandomAffine', max_rotate_degree=0, max_shear_degree=0),
            dict(type='MixUp', img_scale=(70, 64)),
            FLIP,
            dict(type='Resize', scale=(64, 48)),
        ]
        dataset = mixed_dataset(samples, inner, outer, wrapped)
        seed_all(0)
        seen = 0
        for index in [0, 1, 2] * 4:
            packed = dataset[index]
            for row in all_instances(packed):
                assert _is_axis_aligned(row['matrix'])
                _check_instance(
                    row, samples, packed['data_samples'].recorded_shape, may_shrink=True
                )
                seen += 1
        assert seen > 30

    def test_each_mixer_gets_the_images_that_it_asked_for(self):
        dataset = MadeDataset([make_sample()] * 8, [pipeline_of([], pack=None)])
        mosaic, mixup = Mixer(3), Mixer(1)
        pipeline = InvertiblePipeline([mosaic, FLIP, mixup, PACK])
        assert pipeline.get_indexes(dataset) == []
        pipeline(dataset[7])
        assert (mosaic.got, mixup.got) == (mosaic.wanted, mixup.wanted)

    def test_without_mixers_there_is_no_get_indexes(self):
        assert not hasattr(pipeline_of([FLIP]), 'get_indexes')

    def test_unseen_transforms_leave_an_image_without_boxes_unknown(self):
        """What is outside the wrapped packing may move the image of an empty set."""
        affine = [dict(type='RandomAffine', border_val=(0, 0, 0))]
        samples = [make_sample([], []), make_sample()]
        dataset = mixed_dataset(samples, [], affine, wrapped=False)
        assert 'source_matrix' not in dataset[0]['data_samples']
        assert 'source_matrix' in dataset[1]['data_samples']

    def test_unseen_recomputed_boxes_are_refused(self):
        """A plain dict does not resolve boxes made from masks."""
        inner = pipeline_of([], masks='bitmap', pack=None)
        results = dict(run(inner, make_sample(sample_idx=0)))
        results['gt_bboxes'] = results['gt_masks'].get_bboxes(RecordedBoxes)
        with pytest.raises(LostRecordError, match='wrap the pipeline that loads'):
            InvertiblePipeline([PACK])(results)

    def test_coco_files(self, tmp_path):
        _write_coco(tmp_path)
        samples = [make_sample(), make_sample(BOXES[:2], LABELS[:2])]
        mosaic = dict(type='Mosaic', img_scale=(70, 64))
        dataset = MultiImageMixDataset(
            _coco_dataset(tmp_path),
            [dict(type='lt_mm.InvertiblePipeline', transforms=[mosaic, FLIP, PACK])],
        )
        assert len(dataset) == 2
        seed_all(0)
        for index in [0, 1, 0, 1]:
            packed = dataset[index]
            rows = all_instances(packed)
            assert rows and packed['data_samples'].source_id == index
            for row in rows:
                _check_instance(row, samples, packed['data_samples'].recorded_shape)

    @pytest.mark.parametrize(
        'duplicate',
        [lambda dataset: dataset, lambda dataset: pickle.loads(pickle.dumps(dataset))],
        ids=['same process', 'worker'],
    )
    def test_a_wrapped_yolox_list_gives_the_stock_images(self, duplicate):
        """Several mixers draw in the stock order, and YOLOXModeSwitchHook reaches them."""
        samples = [make_sample(), make_sample(BOXES[:2], [1, 4]), make_sample(BOXES[1:], [6, 2])]
        keep = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False)
        outer = [*YOLOX_MIXING, FLIP, keep]
        stock = MultiImageMixDataset(MadeDataset(samples, loaders()), [*outer, PACK])
        ours = mixed_dataset(samples, [], outer, wrapped=True)
        GroupedRepeatAugSampler(ours, num_repeats=2)
        for skipped in ((), YOLOXModeSwitchHook().skip_type_keys):
            found = []
            for dataset in (stock, duplicate(ours)):
                dataset.update_skip_type_keys(skipped)
                seed_all(3)
                found.append([dataset[index] for index in [0, 1, 2] * 3])
            for expected, packed in zip(*found):
                _assert_same(packed, expected)
        assert found[1][0]['inputs'].shape[1:] == SHAPE  # neither a mosaic nor scaled

    def test_unheld_mixers_warn_that_nothing_switches_them_off(self, monkeypatch):
        messages = []
        monkeypatch.setattr('lt_mm.datasets.transforms.mixing.warn', messages.append)
        dataset = mixed_dataset([make_sample()] * 3, [], YOLOX_MIXING, wrapped=True)
        for _ in range(2):
            assert dataset[0]
        assert len(messages) == 1 and 'YOLOXModeSwitchHook' in messages[0]


YOLOX_MIXING = [
    dict(type='Mosaic', img_scale=(70, 64)),
    dict(type='RandomAffine', scaling_ratio_range=(0.5, 1.5), border=(-35, -32)),
    dict(type='MixUp', img_scale=(70, 64), ratio_range=(0.8, 1.6)),
]


class Mixer(BaseTransform):
    """Asks for images and notes which it got."""

    def __init__(self, count):
        self.count = count

    def get_indexes(self, dataset):
        self.wanted = [int(i) for i in np.random.randint(0, len(dataset), self.count)]
        return self.wanted if self.count > 1 else self.wanted[0]

    def transform(self, results):
        self.got = [mixed['sample_idx'] for mixed in results['mix_results']]
        return results


def _check_coverage(image, channel, boxes):
    """All pixels of a colour lie in the moved boxes, whose centres have that colour."""
    shape = tuple(image.shape[1:])
    pixels = image.numpy().astype(float)
    colour = pixels[channel] - np.delete(pixels, channel, axis=0).max(axis=0) > 60
    for box in boxes:
        x1, y1, x2, y2 = reference.clip_box(box, shape)
        if min(x2 - x1, y2 - y1) > 2 * RENDERING:
            # A second image may cover half of it (MixUp adds another colour).
            assert pixels[channel, int((y1 + y2) / 2), int((x1 + x2) / 2)] > 60
        box = reference.clip_box(
            [x1 - RENDERING, y1 - RENDERING, x2 + RENDERING, y2 + RENDERING], shape
        )
        left, top, right, bottom = np.round(box).astype(int)
        colour[top:bottom, left:right] = False
    assert not colour.any()


def _write_coco(folder):
    """Two images on disk and their COCO annotations."""
    images, annotations = [], []
    for number, boxes in enumerate([BOXES, BOXES[:2]]):
        cv2.imwrite(str(folder / f'{number}.png'), paint(boxes))
        images.append(
            dict(id=number + 40, file_name=f'{number}.png', height=SHAPE[0], width=SHAPE[1])
        )
        for (x1, y1, x2, y2), label in zip(boxes, LABELS):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number + 40,
                    category_id=label + 1,
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                    segmentation=polygon((x1, y1, x2, y2)),
                )
            )
    categories = [dict(id=i + 1, name=f'class{i}') for i in range(8)]
    (folder / 'coco.json').write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def _coco_dataset(folder, transforms=None, pack=()):
    load = [
        dict(type='LoadImageFromFile', backend_args=None),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=False),
    ]
    return CocoDataset(
        ann_file=str(folder / 'coco.json'),
        data_prefix=dict(img=str(folder)),
        metainfo=dict(classes=[f'class{i}' for i in range(8)]),
        pipeline=[
            dict(type='lt_mm.InvertiblePipeline', transforms=[*load, *(transforms or []), *pack])
        ],
    )


# Each moves boxes so that a step can be told from the next; odd numbers throughout.
STRAIGHT_POOL = [
    dict(type='Resize', scale=(61, 47)),
    dict(type='Resize', scale=(90, 70), keep_ratio=True, clip_object_border=False),
    dict(type='FixShapeResize', width=53, height=71, keep_ratio=True),
    dict(type='RandomFlip', prob=[0.3, 0.3, 0.3], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='RandomShift', prob=0.8, max_shift_px=9),
    dict(type='RandomCrop', crop_size=(31, 23), allow_negative_crop=True),
    dict(type='RandomCrop', crop_size=(0.5, 0.5), crop_type='relative_range'),
    dict(type='RandomCrop', crop_size=(41, 29), bbox_clip_border=False),
    dict(type='Expand', prob=0.8, ratio_range=(1, 2)),
    dict(type='MinIoURandomCrop'),
    dict(type='Pad', size_divisor=16),
    dict(type='TranslateX', prob=0.8),
    dict(type='TranslateY', prob=0.8),
    dict(type='RandomAffine', max_rotate_degree=0, max_shear_degree=0),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(3, 3), keep_empty=False),
    dict(type='RandomErasing', n_patches=1, ratio=(0.1, 0.4)),
    dict(type='PhotoMetricDistortion'),
    dict(type='RandomApply', prob=0.5, transforms=[dict(type='RandomFlip', prob=1.0)]),
]
TURNING_POOL = [
    dict(type='Rotate', prob=0.8),
    dict(type='ShearX', prob=0.8),
    dict(type='ShearY', prob=0.8),
    dict(type='RandomAffine'),
]
shapes = st.sampled_from([(17, 11), (11, 17), (33, 57), (64, 48)])
fractions = st.floats(0, 1, width=32)


@st.composite
def scenes(draw):
    """A random image with 0-6 boxes: anywhere, at the border, the whole, or tiny."""
    height, width = draw(shapes)
    boxes = []
    for kind in draw(st.lists(st.sampled_from('abwt'), max_size=6)):
        xs = sorted([draw(fractions) * width, draw(fractions) * width])
        ys = sorted([draw(fractions) * height, draw(fractions) * height])
        boxes.append(
            dict(
                a=(xs[0], ys[0], xs[1], ys[1]),
                b=(0, ys[0], xs[1], height),
                w=(0, 0, width, height),
                t=(xs[0], ys[0], min(xs[0] + 2e-4, width), min(ys[0] + 2e-4, height)),
            )[kind]
        )
    labels = draw(st.permutations(range(len(boxes))))
    ignored = [row for row in range(len(boxes)) if draw(st.integers(0, 4)) == 0]
    image = np.random.RandomState(0).randint(0, 255, (height, width, 3), np.uint8)
    return make_sample(boxes, labels, ignored, (height, width), image, sample_idx=3)


def _run_chain(sample, chain, seed):
    """The packed sample, its rows, and the checks that hold for every chain."""
    pipeline = pipeline_of(chain, max_refetch=3)
    packed = run(pipeline, sample, seed)
    if packed is None:
        return None, []
    rows = all_instances(packed)
    sources = [row['source'] for row in rows]
    assert len(set(sources)) == len(sources)
    assert all(source[0] == 3 for source in sources)
    assert len(rows) <= len(sample['instances'])
    for row in rows:
        assert np.isfinite(row['box']).all() and np.isfinite(row['matrix']).all()
        assert 0 <= row['visibility'] <= 1
        moved_annotation(row, {3: sample})  # asserts label and flag
    image_matrix = packed['data_samples'].get('source_matrix')
    if image_matrix is not None:
        for row in rows:
            np.testing.assert_array_equal(row['matrix'], image_matrix)
    return packed, rows


class TestChains:
    """Random chains of transforms on random scenes."""

    @settings(max_examples=120, deadline=None)
    @given(
        scenes(),
        st.lists(st.sampled_from(STRAIGHT_POOL), min_size=2, max_size=5),
        st.integers(0, 2**31),
    )
    def test_straight_chains(self, sample, chain, seed):
        packed, rows = _run_chain(sample, chain, seed)
        for row in rows:
            assert _is_axis_aligned(row['matrix'])
            _check_instance(
                row, {3: sample}, packed['data_samples'].recorded_shape, may_shrink=True
            )

    @settings(max_examples=80, deadline=None)
    @given(
        scenes(),
        st.lists(st.sampled_from(STRAIGHT_POOL), min_size=1, max_size=2),
        st.lists(st.sampled_from(TURNING_POOL), min_size=1, max_size=3),
        st.integers(0, 2**31),
    )
    def test_turning_chains(self, sample, straight, turning, seed):
        """A tiny box has hardly a hull: it shows the matrix of a turned image."""
        chain = [*turning, *straight] if seed % 2 else [*straight, *turning]
        _, rows = _run_chain(sample, chain, seed)
        for row in rows:
            x1, y1, x2, y2 = sample['instances'][row['source'][1]]['bbox']
            if max(x2 - x1, y2 - y1) < 0.01 and row['visibility'] > 0:
                assert lies_inside(row['box'], moved_annotation(row, {3: sample}), PIXEL)

    def test_the_pools_reach_the_checks(self):
        """Most chains neither reject the image nor lose every instance."""
        sample = make_sample(sample_idx=3)
        counts = [
            len(_run_chain(sample, [first, second], seed)[1])
            for seed, first in enumerate(STRAIGHT_POOL + TURNING_POOL)
            for second in (STRAIGHT_POOL[3], STRAIGHT_POOL[8])
        ]
        assert np.mean([count > 0 for count in counts]) > 0.9


class RejectPlaces(BaseTransform):
    """Rejects some of the samples that arrive, by their place in the order."""

    def __init__(self, places):
        self.places, self.calls = places, 0

    def transform(self, results):
        self.calls += 1
        return None if self.calls - 1 in self.places else results


class TestRecord:
    """Fields, types and metainfo of a packed sample."""

    def test_fields(self):
        packed = run(pipeline_of([FLIP]), make_sample(ignored=[1], sample_idx=5))
        sample = packed['data_samples']
        for group, count in ((sample.gt_instances, 2), (sample.ignored_instances, 1)):
            assert type(group.bboxes) is HorizontalBoxes
            assert group.bboxes.tensor.dtype == torch.float32
            assert group.source_ids.dtype == torch.int64
            assert group.source_ids.shape == (count, 2)
            assert group.source_matrices.dtype == torch.float64
            assert group.source_matrices.shape == (count, 3, 3)
            assert group.visibility.dtype == torch.float32
            assert group.visibility.shape == (count,)
        assert sample.gt_instances.source_ids.tolist() == [[5, 0], [5, 2]]
        assert sample.ignored_instances.source_ids.tolist() == [[5, 1]]

    def test_fields_of_an_image_without_boxes(self):
        group = run(pipeline_of([FLIP]), make_sample([], [], sample_idx=5))[
            'data_samples'
        ].gt_instances
        assert group.source_ids.shape == (0, 2) and group.source_ids.dtype == torch.int64
        assert group.source_matrices.shape == (0, 3, 3)
        assert group.visibility.shape == (0,)
        assert group.source_id == 5

    def test_metainfo(self):
        resize = dict(type='Resize', scale=(40, 20))
        packed = run(pipeline_of([resize, FLIP]), make_sample(sample_idx=5))
        sample = packed['data_samples']
        for facts in (sample, sample.gt_instances, sample.ignored_instances):
            assert facts.source_id == 5 and type(facts.source_id) is int
            assert facts.source_shape == SHAPE
            assert facts.recorded_shape == (20, 40)
            assert facts.source_matrix.dtype == np.float64
            np.testing.assert_allclose(
                facts.source_matrix, [[-0.5, 0, 40], [0, 1 / 3, 0], [0, 0, 1]]
            )
            assert [step.name for step in facts.applied_transforms] == ['Resize', 'RandomFlip']
            assert 'source_id' in facts.metainfo_keys()

    def test_applied_transforms_tell_what_they_did(self):
        transforms = [
            dict(type='Resize', scale=(40, 20)),
            dict(type='RandomFlip', prob=0.0),
            FLIP,
            dict(type='Brightness', prob=1.0),
        ]
        sample = run(pipeline_of(transforms), make_sample(sample_idx=5))['data_samples']
        resize, unflipped, flip, brightness = sample.applied_transforms
        assert resize.name == 'Resize' and resize.changes['img_shape'] == (20, 40)
        assert resize.image_matrix[0].tolist() == [0.5, 0, 0]
        assert unflipped == ('RandomFlip', {'flip': False}, None, ())
        assert flip.changes['flip_direction'] == 'horizontal'
        assert flip.image_matrix[0].tolist() == [-0.5, 0, 40]
        assert brightness == ('Brightness', {}, None, ())

    def test_nothing_applied(self):
        sample = run(pipeline_of([]), make_sample(sample_idx=5))['data_samples']
        assert sample.applied_transforms == []
        assert np.array_equal(sample.source_matrix, np.eye(3))

    def test_sample_idx_offset(self):
        pipeline = pipeline_of([FLIP], sample_idx_offset=1000)
        sample = run(pipeline, make_sample(sample_idx=5))['data_samples']
        assert sample.source_id == 1005
        assert sample.gt_instances.source_ids[:, 0].tolist() == [1005] * 3

    def test_offset_reaches_packing_elsewhere(self):
        """The outer pipeline must not need the offset a second time for the boxes."""
        inner = pipeline_of([], pack=None, sample_idx_offset=1000)
        outer = InvertiblePipeline([PACK], sample_idx_offset=1000)
        sample = outer(run(inner, make_sample(sample_idx=5)))['data_samples']
        assert sample.source_id == 1005
        assert sample.gt_instances.source_ids[:, 0].tolist() == [1005] * 3

    def test_the_offset_of_the_pipeline_that_loads_counts(self):
        inner = pipeline_of([], pack=None)
        inner.number(1000, num_replicas=3)
        sample = InvertiblePipeline([PACK])(run(inner, make_sample(sample_idx=5)))['data_samples']
        for facts in (sample, sample.gt_instances):
            record = ImageRecord.read(facts)
            assert (record.source_id, record.num_replicas, record.is_stand_in) == (1005, 3, False)

    def test_samples_of_the_data_set_stay_as_they_are(self):
        given = make_sample(sample_idx=5)
        keys = set(given)
        pipeline_of([FLIP])(given)
        assert set(given) == keys

    @pytest.mark.parametrize('loads', [True, False])
    def test_stand_ins_are_marked(self, loads):
        """By the pipeline, or where the data set goes on with another image after None."""
        reject = RejectPlaces([0, 2])
        if loads:
            pipeline = InvertiblePipeline([LoadMadeImage(), reject, PACK], max_refetch=0)
        else:
            pipeline = InvertiblePipeline([reject, PACK])
        found = []
        for index in [0, 1, 1, 2, 4]:
            sample = make_sample(sample_idx=index)
            packed = pipeline(sample if loads else LoadMadeImage().transform(sample))
            record = None if packed is None else ImageRecord.read(packed['data_samples'])
            found.append(record and (record.source_id, record.is_stand_in))
        # A pipeline that loads has the last good image take the place of a rejected one.
        second = (1, True) if loads else None
        assert found == [None, (1, True), second, (2, not loads), (4, False)]

    def test_images_without_annotations(self):
        pipeline = InvertiblePipeline([LoadMadeImage(), PACK])
        sample = run(pipeline, make_sample(sample_idx=5))['data_samples']
        assert sample.source_id == 5 and np.array_equal(sample.source_matrix, np.eye(3))

    def test_a_tensor_as_index_becomes_a_number(self):
        """Stock samplers may give indices as tensors."""
        sample = make_sample(sample_idx=torch.tensor(4))
        packed = run(pipeline_of([], sample_idx_offset=10), sample)['data_samples']
        assert type(packed.source_id) is int and packed.source_id == 14
        assert packed.gt_instances.source_id == 14
        assert (packed.gt_instances.source_ids[:, 0] == 14).all()


class Shift(BaseTransform):
    """Moves image and boxes by a fixed amount, through the box type."""

    def __init__(self, dx, dy=0, clip=True):
        self.distances, self.clip = (dx, dy), clip

    def transform(self, results):
        matrix = np.float32([[1, 0, self.distances[0]], [0, 1, self.distances[1]]])
        height, width = results['img'].shape[:2]
        results['img'] = cv2.warpAffine(results['img'], matrix, (width, height))
        results['gt_bboxes'].translate_(self.distances)
        if self.clip:
            results['gt_bboxes'].clip_((height, width))
        return results


class TestVisibility:
    @pytest.mark.parametrize('clip', [True, False])
    @pytest.mark.parametrize(
        'dx, dy, expected',
        [(0, 0, 1.0), (-20, 0, 0.5), (-30, 0, 0.0), (-20, -10, 0.25), (60, 0, 0.5)],
    )
    def test_by_hand(self, dx, dy, expected, clip):
        sample = make_sample([(10, 0, 30, 20)], [0], sample_idx=0)
        packed = run(pipeline_of([Shift(dx, dy, clip)]), sample)
        assert packed['data_samples'].gt_instances.visibility.tolist() == [expected]

    def test_a_cut_stays_known_after_an_expansion(self):
        sample = make_sample([(10, 0, 30, 20)], [0], sample_idx=0)
        expand = dict(type='Expand', prob=1.0, ratio_range=(2, 2))
        packed = run(pipeline_of([Shift(-20), expand]), sample)
        assert packed['data_samples'].gt_instances.visibility.tolist() == [0.5]

    def test_an_instance_outside_is_removed_by_the_crop(self):
        sample = make_sample([(0, 0, 5, 5), (40, 40, 60, 60)], [1, 2], sample_idx=0)
        crop = dict(type='RandomCrop', crop_size=(30, 10))
        for seed in range(20):
            packed = run(pipeline_of([crop]), sample, seed)
            group = packed['data_samples'].gt_instances
            assert (group.visibility > 0).all() and len(group) == 1

    def test_flips_and_scales_hide_nothing(self):
        transforms = [FLIP, dict(type='Resize', scale=(37, 23))]
        packed = run(pipeline_of(transforms), make_sample(sample_idx=0))
        torch.testing.assert_close(
            packed['data_samples'].gt_instances.visibility, torch.ones(3), atol=1e-5, rtol=0
        )


class Scribble(BaseTransform):
    """Writes into everything it is given."""

    def transform(self, results):
        results['img'][...] = 0
        results['gt_bboxes_labels'][...] = -1
        for masks in results['gt_masks'].masks:
            np.asarray(masks)[...] = 0
        results['instances'].clear()
        return results


class RedrawnResize(Resize):
    """A resize with a method of its own: it may draw at random."""

    def transform(self, results):
        return super().transform(results)


def _wipe(packed):
    """Writes into all that was packed."""
    sample = packed['data_samples']
    for tensor in (
        packed['inputs'],
        sample.gt_instances.bboxes.tensor,
        sample.gt_instances.labels,
        sample.gt_instances.source_ids,
        sample.gt_instances.source_matrices,
        sample.gt_instances.visibility,
    ):
        tensor.zero_()
    sample.source_matrix[...] = 0
    sample.applied_transforms[0].image_matrix[...] = 0


class CountingLoader(LoadImageFromFile):
    """The stock loader, counted."""

    calls = 0

    def transform(self, results):
        type(self).calls += 1
        return super().transform(results)


class LoadCounted(CountingLoader):
    """A loader by name."""


class LoadNoisily(LoadImageFromFile):
    """A loader by name that draws at random."""

    def transform(self, results):
        results = super().transform(results)
        results['img'] = results['img'] // 2 + np.random.randint(0, 9, dtype=np.uint8)
        return results


class LoadAsFloat(LoadImageFromFile):
    """The stock loader with another default."""

    def __init__(self, to_float32=True):
        super().__init__(to_float32=to_float32)


class TestReplicas:
    """Several samples of one source in a row."""

    def test_a_source_is_decoded_once(self):
        dataset = MadeDataset([make_sample() for _ in range(2)], [pipeline_of([CROP])])
        loader = dataset.pipeline.transforms[0].transforms[0]
        for index in [0, 0, 0, 1, 1, 1]:
            assert dataset[index]['data_samples'].source_id == index
        assert loader.calls == 2
        assert dataset[0]['data_samples'].source_id == 0 and loader.calls == 3

    def test_files_are_decoded_once(self, tmp_path):
        cv2.imwrite(str(tmp_path / 'a.png'), paint(BOXES))
        cv2.imwrite(str(tmp_path / 'b.png'), paint(BOXES[:1]))
        transforms = [LoadCounted(), *loaders()[1:], PACK]
        pipeline = InvertiblePipeline(transforms, draws_nothing=['LoadCounted'])
        before = LoadCounted.calls
        for index, name in enumerate('aaabbb'):
            sample = dict(
                make_sample(sample_idx=index // 3), img_path=str(tmp_path / f'{name}.png')
            )
            packed = run(pipeline, sample)
            channel = packed['inputs'][1]  # the second box is painted in a.png alone
            assert bool(channel.any()) == (name == 'a')
        assert LoadCounted.calls - before == 2

    @pytest.mark.parametrize(
        'cls, declared, calls',
        [
            (LoadNoisily, [], 3),
            (LoadNoisily, ['LoadNoisily'], 1),
            (LoadAsFloat, [], 1),
            (LoadImageFromFile, [], 1),
        ],
    )
    def test_only_loaders_that_are_known_to_draw_nothing_are_shared(
        self, cls, declared, calls, tmp_path, monkeypatch
    ):
        path, decoded = str(tmp_path / 'a.png'), []
        cv2.imwrite(path, paint(BOXES))
        decode = mmcv.imfrombytes
        monkeypatch.setattr(
            mmcv, 'imfrombytes', lambda *args, **kw: (decoded.append(1), decode(*args, **kw))[1]
        )
        pipeline = InvertiblePipeline([cls(), *loaders()[1:], PACK], draws_nothing=declared)
        images = [
            run(pipeline, dict(make_sample(sample_idx=5), img_path=path), seed)['inputs']
            for seed in range(3)
        ]
        assert len(decoded) == calls
        assert torch.equal(images[0], images[1]) == (calls == 1)

    def test_a_declared_name_has_to_be_there(self):
        with pytest.raises(ValueError, match=r"draws_nothing is \['LoadCounter'\]"):
            InvertiblePipeline([LoadCounted(), PACK], draws_nothing=['LoadCounter'])

    def test_replicas_differ(self):
        dataset = MadeDataset([make_sample()], [pipeline_of([CROP])])
        seed_all(0)
        matrices = {dataset[0]['data_samples'].source_matrix.tobytes() for _ in range(6)}
        assert len(matrices) > 1

    @pytest.mark.parametrize('shared', [[], [RESIZE]])
    @pytest.mark.parametrize('masks', ['bitmap', 'polygon'])
    def test_nothing_leaks_into_the_next_replica(self, masks, shared):
        clean = run(pipeline_of(shared, masks), make_sample(sample_idx=5))
        pipeline = pipeline_of([*shared, Switch(Scribble())], masks)
        run(pipeline, make_sample(sample_idx=5))
        pipeline.transforms[-2].is_on = False
        again = run(pipeline, make_sample(sample_idx=5))
        _assert_same(again, clean)

    def test_writing_into_what_was_packed_does_not_leak(self):
        pipeline = pipeline_of([RESIZE], pack=dict(PACK, meta_keys=()))
        first = run(pipeline, make_sample(sample_idx=5))
        clean = copy.deepcopy(first)
        _wipe(first)
        _wipe(run(pipeline, make_sample(sample_idx=5)))
        third = run(pipeline, make_sample(sample_idx=5))
        _assert_same(third, clean)
        mine, theirs = third['data_samples'], clean['data_samples']
        for name in ('source_ids', 'source_matrices', 'visibility'):
            assert torch.equal(mine.gt_instances[name], theirs.gt_instances[name])
        np.testing.assert_array_equal(mine.source_matrix, theirs.source_matrix)
        np.testing.assert_array_equal(
            mine.applied_transforms[0].image_matrix, theirs.applied_transforms[0].image_matrix
        )

    @pytest.mark.parametrize('cls, calls', [(Resize, 2), (RedrawnResize, 6)])
    def test_a_resize_that_draws_nothing_is_done_once(self, cls, calls, monkeypatch):
        done = []
        resize = Resize.transform
        monkeypatch.setattr(
            Resize,
            'transform',
            lambda self, results: (done.append(results['sample_idx']), resize(self, results))[1],
        )
        pipeline = pipeline_of([cls((120, 90), keep_ratio=True)])
        for index in [0, 0, 0, 1, 1, 1]:
            packed = run(pipeline, make_sample(sample_idx=index))
            assert packed['data_samples'].img_shape == (90, 120)
        assert len(done) == calls

    @pytest.mark.parametrize('masks', [None, 'bitmap', 'polygon'])
    def test_every_replica_equals_the_stock_output(self, masks):
        transforms = [
            RESIZE,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            CROP,
        ]
        stock = Compose([*loaders(masks), *copy.deepcopy(transforms), PACK])
        ours = pipeline_of(transforms, masks)
        # Twice in a row, once each, and twice again.
        for seed, index in enumerate([0, 0, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6]):
            sample = make_sample(sample_idx=index, ignored=[index % 3])
            _assert_same(run(ours, sample, seed), run(stock, sample, seed))

    def test_the_source_has_the_shape_before_a_shared_resize(self):
        pipeline = pipeline_of([RESIZE])
        load = pipeline.transforms[0].transform

        def load_without_shape(results):
            results = load(results)
            del results['ori_shape']
            return results

        pipeline.transforms[0].transform = load_without_shape
        for _ in range(2):
            sample = run(pipeline, make_sample(sample_idx=5))['data_samples']
            assert sample.source_shape == SHAPE
            assert sample.recorded_shape == (90, 120)

    def test_sources_that_come_once_and_then_repeatedly(self):
        dataset = MadeDataset([make_sample() for _ in range(5)], [pipeline_of([CROP])])
        loader = dataset.pipeline.transforms[0].transforms[0]
        for index, calls in [
            (0, 1),
            (1, 2),
            (2, 3),
            (3, 4),
            (3, 5),
            (3, 5),
            (4, 6),
            (4, 6),
            (0, 7),
            (0, 7),
        ]:
            assert dataset[index]['data_samples'].source_id == index
            assert loader.calls == calls

    def test_boxes_moved_in_place_do_not_leak(self):
        pipeline = pipeline_of([Shift(-7, 3)])
        packed = [run(pipeline, make_sample(sample_idx=5)) for _ in range(2)]
        _assert_same(*packed)

    def test_a_rejected_replica_is_tried_again_on_the_same_source(self):
        pipeline = pipeline_of([RejectFirst(3)])
        assert run(pipeline, make_sample(sample_idx=5))['data_samples'].source_id == 5
        assert run(pipeline_of([RejectFirst(3)], max_refetch=2), make_sample(sample_idx=5)) is None


class Switch(BaseTransform):
    """A transform that can be turned off."""

    def __init__(self, transform):
        self.inner, self.is_on = transform, True

    def transform(self, results):
        return self.inner(results) if self.is_on else results


class RejectFirst(BaseTransform):
    """Rejects the first samples, after moving their boxes."""

    def __init__(self, count):
        self.left = count

    def transform(self, results):
        if self.left == 0:
            assert np.allclose(results['gt_bboxes'].tensor.numpy(), BOXES)
            return results
        self.left -= 1
        results['gt_bboxes'].translate_((5, 5))
        return None


def _assert_same(packed, other):
    """Equal pixels, boxes, labels and masks."""
    torch.testing.assert_close(packed['inputs'], other['inputs'], rtol=0, atol=0)
    for name in ('gt_instances', 'ignored_instances'):
        mine, theirs = (p['data_samples'].get(name) for p in (packed, other))
        assert torch.equal(mine.bboxes.tensor, theirs.bboxes.tensor)
        assert torch.equal(mine.labels, theirs.labels)
        assert ('masks' in mine) == ('masks' in theirs)
        if 'masks' in mine:
            np.testing.assert_array_equal(mine.masks.to_ndarray(), theirs.masks.to_ndarray())


class TestStockOutput:
    """Wrapping changes nothing that the stock pipeline gives."""

    @pytest.mark.parametrize('case', SINGLE, **by_name)
    def test_single_images(self, case):
        stock = Compose([*loaders(case.masks, case.to_float32), *case.transforms, PACK])
        ours = pipeline_of(case.transforms, case.masks, case.to_float32)
        for seed in range(3):
            sample = make_sample(ignored=[1], sample_idx=5)
            expected = run(stock, sample, seed)
            _assert_same(run(ours, sample, seed), expected)

    @pytest.mark.parametrize('wrapped', [True, False])
    @pytest.mark.parametrize('case', MIXING, **by_name)
    def test_mixtures(self, case, wrapped):
        samples = [
            make_sample(),
            make_sample(BOXES[:2], [1, 4], ignored=[1]),
            make_sample(BOXES[:1], [6]),
        ]
        ours = mixed_dataset(samples, [], case.transforms, wrapped, case.masks)
        stock = MultiImageMixDataset(
            MadeDataset(samples, loaders(case.masks)), [*case.transforms, PACK]
        )
        expected, found = [], []
        for dataset, packed in ((stock, expected), (ours, found)):
            seed_all(3)
            packed += [dataset[index] for index in [0, 1, 2, 0, 1, 2, 0]]
        for mine, theirs in zip(found, expected):
            _assert_same(mine, theirs)

    def test_metainfo_is_kept(self):
        sample = dict(make_sample(sample_idx=5), img_id=77, img_path='a.png')
        stock = Compose([*loaders(), FLIP, PACK])
        expected = run(stock, sample)['data_samples'].metainfo
        found = run(pipeline_of([FLIP]), sample)['data_samples'].metainfo
        assert {key: found[key] for key in expected} == expected
        assert expected['img_id'] == 77 and expected['flip'] is True


def _rewrite(function):
    """A third-party transform from a function of (results, boxes, width)."""

    class ThirdParty(BaseTransform):
        def transform(self, results):
            width = results['img'].shape[1]
            return function(results, results['gt_bboxes'], width) or results

    return ThirdParty()


def _mirror(values, width):
    mirrored = values.clone() if isinstance(values, torch.Tensor) else values.copy()
    mirrored[:, 0], mirrored[:, 2] = width - values[:, 2], width - values[:, 0]
    return mirrored


def _mirror_image(results):
    results['img'] = results['img'][:, ::-1]


def _numpy_boxes(results, boxes, width):
    results['gt_bboxes'] = _mirror(boxes.numpy(), width)


def _new_boxes(results, boxes, width):
    results['gt_bboxes'] = HorizontalBoxes(_mirror(boxes.tensor, width))


def _same_type_from_numbers(results, boxes, width):
    results['gt_bboxes'] = type(boxes)(_mirror(boxes.tensor, width))


def _into_tensor(results, boxes, width):
    boxes.tensor[:] = _mirror(boxes.tensor, width)


def _new_tensor(results, boxes, width):
    boxes.tensor = _mirror(boxes.tensor, width)


def _into_numpy_view(results, boxes, width):
    boxes.numpy()[:] = _mirror(boxes.numpy(), width)


def _into_data(results, boxes, width):
    boxes.tensor.data.add_(1)


def _written_then_picked(results, boxes, width):
    boxes.tensor[:, 0] += 1
    results['gt_bboxes'] = boxes[torch.tensor([0, 1])]


def _written_then_moved(results, boxes, width):
    boxes.tensor[:, 0] += 1
    boxes.translate_((1, 1))


def _written_then_cloned(results, boxes, width):
    boxes.tensor[:, 0] += 1
    results['gt_bboxes'] = boxes.clone()


def _row_by_row(results, boxes, width):
    boxes[0] = boxes[1]


def _joined_with_plain(results, boxes, width):
    results['gt_bboxes'] = boxes.cat([boxes, HorizontalBoxes(boxes.tensor)])


def _dropped(results, boxes, width):
    del results['gt_bboxes']


def _set_to_none(results, boxes, width):
    results['gt_bboxes'] = None


def _from_masks_of_others(results, boxes, width):
    """Boxes from fewer masks than there are boxes: whose they are is open."""
    results['gt_bboxes'] = results['gt_masks'][np.array([1])].get_bboxes(type(boxes))


def _from_masks_in_a_new_dict(results, boxes, width):
    return dict(results, gt_bboxes=results['gt_masks'].get_bboxes(type(boxes)))


class IdleInstaBoost(InstaBoost):
    """The stock transform where it does not draw its package, which is not needed then."""

    def __init__(self):
        self.aug_ratio = 0.0


class MovesAnnotations(BaseTransform):
    """Changes the annotations of a data set, which are not loaded yet."""

    def __init__(self, change):
        self.change = change

    def transform(self, results):
        self.change(results['instances'])
        return results


class Albu(BaseTransform):
    """Rebuilds boxes from numpy, as the stock wrapper of albumentations does."""

    def __init__(self, mirror=False, keep=None):
        self.mirror, self.keep = mirror, keep

    def transform(self, results):
        results = dict(results)  # the stock one maps keys into a new dict
        boxes = results['gt_bboxes'].numpy()
        if self.mirror:
            _mirror_image(results)
            boxes = _mirror(boxes, results['img'].shape[1])
        if self.keep is not None:
            boxes = boxes[self.keep]
            for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
                results[key] = results[key][self.keep]
        boxes = np.array(list(boxes), dtype=np.float32).reshape(-1, 4)
        results['gt_bboxes'] = HorizontalBoxes(boxes)
        return results


class TestThirdParty:
    """Transforms that go past the box type are refused, never silently wrong."""

    @pytest.mark.parametrize(
        'function',
        [
            _numpy_boxes,
            _new_boxes,
            _same_type_from_numbers,
            _into_tensor,
            _new_tensor,
            _into_numpy_view,
            _into_data,
            _written_then_picked,
            _written_then_moved,
            _written_then_cloned,
            _row_by_row,
            _joined_with_plain,
            _dropped,
            _set_to_none,
            _from_masks_of_others,
            _from_masks_in_a_new_dict,
        ],
    )
    def test_refused(self, function):
        pipeline = pipeline_of([FLIP, _rewrite(function)], masks='bitmap')
        with pytest.raises(LostRecordError) as caught:
            run(pipeline, make_sample(sample_idx=5))
        message = str(caught.value)
        assert message.startswith('ThirdParty: ') and 'Remove ThirdParty' in message
        assert "image_only=['ThirdParty']" in message

    @pytest.mark.parametrize(
        'function', [_numpy_boxes, _new_boxes, _into_tensor, _new_tensor, _same_type_from_numbers]
    )
    def test_a_box_mirrored_onto_itself_is_refused(self, function):
        """The coordinates look the same, but left and right of the instance changed."""
        sample = make_sample([(20, 5, 60, 30)], [0], sample_idx=5)
        before = np.array(sample['instances'][0]['bbox'], np.float32)[None]
        np.testing.assert_array_equal(_mirror(before, SHAPE[1]), before)

        def mirror(results, boxes, width):
            _mirror_image(results)
            function(results, boxes, width)

        with pytest.raises(LostRecordError, match='ThirdParty'):
            run(pipeline_of([_rewrite(mirror)]), sample)

    def test_hidden_in_a_wrapper(self):
        wrapper = dict(type='RandomApply', prob=1.0, transforms=[_rewrite(_into_tensor), FLIP])
        with pytest.raises(LostRecordError, match='RandomApply'):
            run(pipeline_of([wrapper]), make_sample(sample_idx=5))

    def test_right_before_packing_without_ignore_flags(self):
        """Packing then hands the boxes through unindexed."""

        def write(results, boxes, width):
            del results['gt_ignore_flags']

        inner = pipeline_of([_rewrite(write)], pack=None)
        results = run(inner, make_sample(sample_idx=5))
        results['gt_bboxes'].tensor[:, 0] += 1
        with pytest.raises(LostRecordError):
            InvertiblePipeline([PACK])(results)

    def test_the_box_type_itself_is_welcome(self):

        def move(results, boxes, width):
            _mirror_image(results)
            boxes.flip_(results['img'].shape[:2])
            results['gt_bboxes'] = boxes[np.array([2, 0])]
            results['gt_bboxes_labels'] = results['gt_bboxes_labels'][[2, 0]]
            results['gt_ignore_flags'] = results['gt_ignore_flags'][[2, 0]]

        sample = make_sample(sample_idx=5)
        packed = run(pipeline_of([_rewrite(move)]), sample)
        assert packed['data_samples'].gt_instances.source_ids.tolist() == [[5, 2], [5, 0]]
        for row in all_instances(packed):
            _check_instance(row, {5: sample}, SHAPE)
            _check_pixels(row, packed, {5: sample})

    @pytest.mark.parametrize(
        'keys', [None, ('img', 'gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags', 'img_shape')]
    )
    def test_a_new_dict_with_the_recorded_boxes_is_welcome(self, keys):
        """Whatever of the record lies beside the boxes is carried over."""

        def renew(results, boxes, width):
            _mirror_image(results)
            boxes.flip_(results['img'].shape[:2])
            return {key: results[key] for key in keys or results}

        sample = make_sample(sample_idx=5)
        packed = run(pipeline_of([FLIP, _rewrite(renew)]), sample)
        assert packed['data_samples'].source_id == 5
        assert packed['data_samples'].source_shape == SHAPE
        assert len(packed['data_samples'].applied_transforms) == 2
        for row in all_instances(packed):
            _check_instance(row, {5: sample}, SHAPE)
            _check_pixels(row, packed, {5: sample})

    def test_albu_is_refused_by_default(self):
        with pytest.raises(LostRecordError, match=r"Albu: .*image_only=\['Albu'\]"):
            run(pipeline_of([Albu()]), make_sample(sample_idx=5))

    @pytest.mark.parametrize('keep', [None, [0, 2], [1], []])
    def test_albu_that_moves_nothing(self, keep):
        sample = make_sample(sample_idx=5)
        packed = run(pipeline_of([FLIP, Albu(keep=keep)], image_only=['Albu']), sample)
        rows = all_instances(packed)
        assert [row['source'][1] for row in rows] == ([0, 1, 2] if keep is None else keep)
        for row in rows:
            _check_instance(row, {5: sample}, SHAPE)

    @pytest.mark.parametrize(
        'boxes',
        [
            BOXES,
            # They take each other's place, so the set of numbers is the same.
            [(10, 5, 30, 30), (50, 5, 70, 30)],
        ],
    )
    def test_albu_that_moves(self, boxes):
        sample = make_sample(boxes, sample_idx=5)
        with pytest.raises(LostRecordError, match='declared image_only'):
            run(pipeline_of([Albu(mirror=True)], image_only=['Albu']), sample)

    def test_albu_that_keeps_one_of_two_equal_boxes(self):
        sample = make_sample([BOXES[0], BOXES[0]], [1, 2], sample_idx=5)
        with pytest.raises(LostRecordError, match='declared image_only'):
            run(pipeline_of([Albu(keep=[1])], image_only=['Albu']), sample)
        packed = run(pipeline_of([Albu()], image_only=['Albu']), sample)
        assert [row['source'] for row in all_instances(packed)] == [(5, 0), (5, 1)]

    def test_an_unknown_transform_leaves_an_image_without_boxes_unknown(self):
        pipeline = pipeline_of([_rewrite(lambda results, *_: _mirror_image(results))])
        sample = run(pipeline, make_sample([], [], sample_idx=5))['data_samples']
        assert 'source_matrix' not in sample

    def test_an_unknown_wrapper_of_known_transforms_is_not_trusted(self):

        class Mirroring(Compose):
            def transform(self, results):
                _mirror_image(results)
                return super().transform(results)

        sample = run(pipeline_of([Mirroring([FLIP])]), make_sample([], [], sample_idx=5))[
            'data_samples'
        ]
        assert 'source_matrix' not in sample


class TestErrors:
    def test_no_sample_idx(self):
        with pytest.raises(LostRecordError, match="no 'sample_idx'.*BaseDataset"):
            run(pipeline_of([FLIP]), make_sample())

    def test_unrecorded_boxes_at_entry(self):
        results = run(Compose(loaders()), make_sample(sample_idx=5))
        with pytest.raises(LostRecordError, match='wrap the pipeline that loads'):
            InvertiblePipeline([FLIP, PACK])(results)

    def test_unrecorded_boxes_of_a_partner(self):
        sample = make_sample(sample_idx=5)
        results = run(pipeline_of([], pack=None), sample)
        results['mix_results'] = [run(Compose(loaders()), sample)]
        mixup = dict(type='MixUp', img_scale=(70, 64))
        with pytest.raises(LostRecordError, match='wrap the pipeline that loads'):
            InvertiblePipeline([mixup, PACK])(results)

    @pytest.mark.parametrize(
        'box_type, found', [(None, 'ndarray'), ('lt_recorded_hbox', 'RecordedBoxes')]
    )
    def test_box_type(self, box_type, found):
        load = dict(type='LoadAnnotations', with_bbox=True, box_type=box_type)
        pipeline = InvertiblePipeline([LoadMadeImage(), load, FLIP, PACK])
        with pytest.raises(LostRecordError, match=f"{found}.*box_type='hbox'"):
            run(pipeline, make_sample(sample_idx=5))

    def test_annotations_loaded_after_the_image_was_moved(self):
        load, annotations = loaders()
        pipeline = InvertiblePipeline(
            [load, dict(type='Resize', scale=(40, 20)), annotations, PACK]
        )
        with pytest.raises(LostRecordError, match='after Resize'):
            run(pipeline, make_sample(sample_idx=5))

    @pytest.mark.parametrize(
        'transform',
        [
            dict(type=IdleInstaBoost),
            dict(type='RandomApply', prob=1.0, transforms=[dict(type=IdleInstaBoost)]),
            dict(type=MovesAnnotations, change=lambda instances: instances.pop()),
            dict(type=MovesAnnotations, change=lambda instances: instances.reverse()),
            dict(
                type=MovesAnnotations,
                change=lambda instances: instances[0]['bbox'].__setitem__(0, 3.0),
            ),
            dict(
                type=MovesAnnotations,
                change=lambda instances: instances[1].update(bbox=[1.0, 2.0, 3.0, 4.0]),
            ),
            dict(
                type=MovesAnnotations,
                change=lambda instances: instances[1]['mask'][0].__setitem__(0, 3.0),
            ),
        ],
    )
    def test_annotations_changed_before_they_are_loaded(self, transform):
        load, annotations = loaders()
        pipeline = InvertiblePipeline([load, transform, annotations, PACK])
        name = transform['type']
        name = name if isinstance(name, str) else name.__name__
        with pytest.raises(
            LostRecordError, match=f'^{name}: .*before they were loaded.*Remove {name}'
        ):
            run(pipeline, make_sample(sample_idx=5))

    def test_annotations_loaded_after_colours_changed(self):
        load, annotations = loaders()
        pipeline = InvertiblePipeline(
            [load, dict(type='PhotoMetricDistortion'), annotations, FLIP, PACK]
        )
        sample = make_sample(sample_idx=5)
        for row in all_instances(run(pipeline, sample)):
            _check_instance(row, {5: sample}, SHAPE)

    @pytest.mark.parametrize('transforms', [[], (), FLIP, 'RandomFlip', None])
    def test_transforms(self, transforms):
        with pytest.raises(ValueError, match='non-empty list'):
            InvertiblePipeline(transforms)


class TestTransport:
    """Pipelines travel to workers."""

    @pytest.mark.parametrize(
        'duplicate',
        [copy.deepcopy, lambda pipeline: pickle.loads(pickle.dumps(pipeline))],
        ids=['deepcopy', 'pickle'],
    )
    def test_copies_work(self, duplicate):
        pipeline, sample = pipeline_of([CROP, FLIP]), make_sample(sample_idx=5)
        run(pipeline, sample)  # a cache to travel with
        _assert_same(run(duplicate(pipeline), sample), run(pipeline, sample))

    @pytest.mark.parametrize(
        'duplicate',
        [copy.deepcopy, lambda pipeline: pickle.loads(pickle.dumps(pipeline))],
        ids=['deepcopy', 'pickle'],
    )
    def test_copies_mix_for_themselves(self, duplicate):
        pipeline = InvertiblePipeline([dict(type='Mosaic', img_scale=(70, 64)), PACK])
        dataset = MadeDataset([make_sample()] * 5, [pipeline_of([], pack=None)])
        copied = duplicate(pipeline)
        copied.get_indexes(dataset)
        assert copied(dataset[0])['data_samples'].source_id == 0
        with pytest.raises(AssertionError):  # Mosaic's own, without images
            pipeline(dataset[0])

    @pytest.mark.parametrize(
        'context',
        [
            'fork',
            pytest.param(  # pickles what a worker gets, as spawn does, and starts sooner
                'forkserver',
                marks=pytest.mark.skipif(sys.platform != 'linux', reason='start methods differ'),
            ),
        ],
    )
    def test_workers(self, context):
        dataset = MadeDataset([make_sample() for _ in range(3)], [pipeline_of([CROP])])
        loader = DataLoader(
            dataset,
            batch_size=2,
            sampler=[0, 0, 1, 1, 2, 2],
            num_workers=2,
            collate_fn=pseudo_collate,
            multiprocessing_context=multiprocessing.get_context(context),
        )
        ids = [[sample.source_id for sample in batch['data_samples']] for batch in loader]
        assert ids == [[0, 0], [1, 1], [2, 2]]

    def test_repr_names_the_transforms(self):
        text = repr(pipeline_of([FLIP, CROP]))
        assert text.startswith('InvertiblePipeline(') and 'RandomCrop(crop_size' in text


class TestClassification:
    """mmpretrain pipelines: no boxes, so no geometry is recorded."""

    @pytest.fixture(autouse=True)
    def _scope(self, _scope):
        init_default_scope('mmpretrain')

    @staticmethod
    def _sample(image=None):
        image = np.zeros((17, 11, 3), np.uint8) if image is None else image
        return dict(img=image, gt_label=4, sample_idx=9)

    def test_images_in_memory(self):
        pipeline = InvertiblePipeline(
            [
                dict(type='RandomCrop', crop_size=8, padding=2),
                dict(type='RandomFlip', prob=1.0),
                dict(type='PackInputs'),
            ]
        )
        packed = run(pipeline, self._sample())
        sample = packed['data_samples']
        assert tuple(packed['inputs'].shape) == (3, 8, 8)
        assert sample.source_id == 9 and sample.source_shape == (17, 11)
        assert sample.recorded_shape == (8, 8) and sample.gt_label.tolist() == [4]
        names = [step.name for step in sample.applied_transforms]
        assert names == ['RandomCrop', 'RandomFlip']
        assert 'source_matrix' not in sample

    def test_a_crop_to_the_same_size_is_no_identity(self):
        """The crop of CIFAR's recipe changes no result key but the image."""
        loader = LoadMadeImage()
        crop = dict(type='RandomCrop', crop_size=(17, 11), padding=4)
        pipeline = InvertiblePipeline([loader, crop, dict(type='PackInputs')])
        results = dict(made_image=np.zeros((17, 11, 3), np.uint8), gt_label=1, sample_idx=9)
        sample = run(pipeline, results)['data_samples']
        assert sample.source_shape == (17, 11) and 'source_matrix' not in sample

    def test_packing_alone_knows_nothing(self):
        """Somebody else may have moved the image before."""
        pipeline = InvertiblePipeline([dict(type='PackInputs')])
        assert 'source_matrix' not in run(pipeline, self._sample())['data_samples']

    def test_loading_and_packing_alone(self):
        pipeline = InvertiblePipeline([LoadMadeImage(), dict(type='PackInputs')])
        results = dict(made_image=np.zeros((17, 11, 3), np.uint8), gt_label=1, sample_idx=9)
        sample = run(pipeline, results)['data_samples']
        assert np.array_equal(sample.source_matrix, np.eye(3))

    def test_files(self, tmp_path):
        from mmpretrain.datasets import CustomDataset

        for name in ('cat/a.png', 'cat/b.png', 'dog/a.png'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / name), np.zeros((17, 11, 3), np.uint8))
        dataset = CustomDataset(
            data_root=str(tmp_path),
            pipeline=[
                dict(
                    type='lt_mm.InvertiblePipeline',
                    transforms=[
                        dict(type='LoadImageFromFile'),
                        dict(type='RandomResizedCrop', scale=8),
                        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                        dict(type='PackInputs'),
                    ],
                )
            ],
        )
        for index in range(3):
            packed = dataset[index]
            sample = packed['data_samples']
            assert tuple(packed['inputs'].shape) == (3, 8, 8)
            assert sample.source_id == index and sample.source_shape == (17, 11)
            assert sample.applied_transforms[0].name == 'RandomResizedCrop'
            assert 'source_matrix' not in sample

    def test_stock_output(self):
        transforms = [
            dict(type='RandomCrop', crop_size=8, padding=2),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ]
        image = np.random.RandomState(0).randint(0, 255, (17, 11, 3), np.uint8)
        for seed in range(4):
            expected = run(Compose(transforms), self._sample(image), seed)
            found = run(InvertiblePipeline(transforms), self._sample(image), seed)
            assert torch.equal(found['inputs'], expected['inputs'])
            assert found['data_samples'].gt_label == expected['data_samples'].gt_label


_FIND = """
from mmengine.registry import init_default_scope
{before}
init_default_scope({scope!r})
from {scope}.registry import TRANSFORMS as SCOPED
flip = dict(type='RandomFlip', prob=1.0)
pipeline = SCOPED.build(dict(type={name!r}, transforms=[flip]))
assert type(pipeline).__module__ == 'lt_mm.datasets.transforms.invertible_pipeline', type(pipeline)
assert type(pipeline.transforms[0]).__module__.split('.')[0] in ({scope!r}, 'mmcv')
"""
_EACH_IN_A_FORK = """
import os, sys
import mmdet.models, mmpretrain.models

for script in {scripts!r}:
    if os.fork() == 0:
        assert 'lt_mm' not in sys.modules
        exec(script)
        sys.exit()
    assert os.wait()[1] == 0, script
print('found')
"""


class TestRegistry:
    def test_found_from_each_scope(self):
        """In processes that have imported the frameworks, and lt_mm where ``import`` says so."""
        scripts = [
            _FIND.format(scope=scope, name=name, before=before)
            for scope in ('mmdet', 'mmpretrain')
            for name, before in (
                ('lt_mm.InvertiblePipeline', ''),
                ('InvertiblePipeline', 'import lt_mm'),
            )
        ]
        path = os.pathsep.join([str(REPOSITORY), os.environ.get('PYTHONPATH', '')])
        done = subprocess.run(
            [sys.executable, '-c', _EACH_IN_A_FORK.format(scripts=scripts)],
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHONPATH=path),
        )
        assert done.stdout.endswith('found\n'), done.stderr


class TestDocumentation:
    def test_the_table_is_fresh(self):
        path = DOCS / 'transforms.md'
        command = 'python -m tests.datasets.transforms.transform_cases > docs/transforms.md'
        found = path.read_text() if path.exists() else ''
        assert found == transform_cases.support_matrix(), f'stale table; run: {command}'

    def test_every_transform_of_mmdetection_has_a_line(self):
        """A new one is to be proved, or to be named here with its reason."""
        table = set(re.findall(r'\w+', transform_cases.support_matrix()))
        stock = {
            name
            for name, transform in MMDET_TRANSFORMS.module_dict.items()
            if transform.__module__.startswith('mmdet.')
        }
        elsewhere = {
            'ImageToTensor',
            'ToTensor',
            'Transpose',
            'WrapFieldsToLists',  # for packing
            'GeomTransform',  # the base of Rotate and others
            'Corrupt',  # changes pixels alone; needs a package
            'BaseFrameSample',
            'UniformRefFrameSample',  # tracking
            'RandomSamplingNegPos',  # changes texts and labels
            'InferencerLoader',
        }
        assert not {
            name for name in stock - table - elsewhere if not name.startswith(('Load', 'Pack'))
        }

    def test_names_are_unique(self):
        names = [case.name for case in CASES]
        assert len(set(names)) == len(names)

    def test_inexact_cases_exist(self):
        assert any(case.expected == INEXACT for case in CASES)
