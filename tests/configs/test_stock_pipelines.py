"""The training pipelines of all stock configs of MMDetection, recorded.

Every one of them either records where its boxes come from or is refused by name.
"""

import copy
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmdet.datasets import MultiImageMixDataset
from mmengine.config import Config
from mmengine.registry import init_default_scope

from lt_mm.core import geometry
from lt_mm.structures.errors import LostRecordError
from tests.datasets.transforms.pipeline_data import (
    MadeDataset,
    all_instances,
    lies_inside,
    make_sample,
    moved_annotation,
    seed_all,
)

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
SHAPE = (240, 320)
BOXES = ((20, 32, 120, 112), (176, 24, 288, 136), (80, 144, 232, 220))
# Pixels of the replica: some pipelines make boxes anew, from masks.
TOLERANCE = 1.5
REFUSED = {'GTBoxSubOne_GLIP', 'MultiBranch'}
# In pipelines for other data than images with boxes and masks, or that need a package.
OTHERS = {
    'Albu',
    'InstaBoost',
    'LoadPanopticAnnotations',
    'LoadProposals',
    'LoadTrackAnnotations',
    'PackReIDInputs',
    'RandomSamplingNegPos',
    'UniformRefFrameSample',
}


def names_of(pipeline):
    """Names of the transforms, of those inside of others too."""
    for transform in pipeline:
        if isinstance(transform, (list, tuple)):
            yield from names_of(transform)
        elif isinstance(transform, dict):
            yield str(transform.get('type'))
            yield from names_of(
                value for value in transform.values() if isinstance(value, (list, tuple))
            )


def stock_pipelines():
    """By the first config that has it: (pipeline, that of the mixing data set or None)."""
    found = {}
    for path in sorted(CONFIGS.glob('*/*.py')):
        if path.parent.name == 'dsdl':  # loads through a client of its own
            continue
        try:
            dataset = (Config.fromfile(path).get('train_dataloader') or {}).get('dataset')
        except FileNotFoundError:  # some trackers' configs name bases that do not exist
            continue
        inner, outer = pipelines_of(dataset or {})
        if inner and not OTHERS.intersection(names_of([*inner, *(outer or ())])):
            found.setdefault(repr((inner, outer)), (path.relative_to(CONFIGS), (inner, outer)))
    return dict(found.values())


def pipelines_of(dataset):
    """The pipeline of the innermost data set, and that of one that mixes images."""
    outer = None
    while 'dataset' in dataset or 'datasets' in dataset:
        if dataset['type'] == 'MultiImageMixDataset':
            outer = dataset['pipeline']
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset.get('pipeline'), outer


@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    """Three images with three instances each, as files."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    samples = []
    for number in range(3):
        image = rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
        cv2.imwrite(str(root / f'{number}.png'), image)
        sample = make_sample(BOXES, shape=SHAPE, image=image)
        del sample['made_image']
        samples.append(dict(sample, img_id=number, img_path=str(root / f'{number}.png')))
    return samples


def recorded(pipeline):
    return [dict(type='lt_mm.InvertiblePipeline', transforms=copy.deepcopy(pipeline))]


@pytest.mark.slow
def test_every_stock_pipeline_is_recorded_or_refused(samples):
    init_default_scope('mmdet')
    checked, refused = {}, set()
    for path, (inner, outer) in stock_pipelines().items():
        dataset = MadeDataset(samples, recorded(inner))
        if outer:
            dataset = MultiImageMixDataset(dataset, recorded(outer))
        seed_all(0)
        try:
            checked[path] = [_whole_boxes(dataset[index], samples, path) for index in (0, 0, 1, 1)]
        except LostRecordError as error:
            refused.add(str(error).split(':')[0])
    assert refused == REFUSED
    assert len(checked) > 60
    # All but those that rotate or cut every time show boxes that came back whole.
    whole = [path for path, counts in checked.items() if sum(counts)]
    assert len(whole) > 60


def _whole_boxes(packed, samples, path):
    """How many boxes are their annotations', moved; the others are parts of them."""
    count = 0
    for row in all_instances(packed):
        moved = moved_annotation(row, samples)
        assert lies_inside(row['box'], moved, TOLERANCE), (path, row)
        aligned = bool(geometry.is_axis_aligned(torch.from_numpy(row['matrix'])[None]))
        if aligned and row['visibility'] > 0.999:
            np.testing.assert_allclose(row['box'], moved, atol=TOLERANCE, err_msg=str(path))
            count += 1
    return count
