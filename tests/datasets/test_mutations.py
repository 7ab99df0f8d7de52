"""Whatever is wrong with a file: right contents, or one clear kind of error."""

import json
import random
import re
import resource
import time
from collections import Counter

import cv2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from lt_mm.datasets.checks import explained
from lt_mm.datasets.reporting import DataSetError
from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler
from lt_mm.datasets.transforms.image_loading import BadImageError
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from tests.datasets.mutations import (
    CLASSES,
    coco,
    damaged,
    expected_contents,
    image_files,
    mutated,
    picture,
)

LOAD = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Four images, and a log file that the data sets write to."""
    root = tmp_path_factory.mktemp('mutations')
    for row in range(4):
        cv2.imwrite(str(root / f'{row}.png'), picture())
    MMLogger.get_instance(f'mutations {root}', log_file=str(root / 'run.log'))
    init_default_scope('mmdet')
    return root


def open_data(root):
    cfg = dict(type='CocoDataset', ann_file='train.json', data_root=str(root))
    with explained(cfg):
        dataset = CocoDataset(
            ann_file='train.json',
            data_root=str(root),
            data_prefix=dict(img=''),
            metainfo=dict(classes=CLASSES),
            serialize_data=False,
            pipeline=[InvertiblePipeline(LOAD, on_missing_image='skip', max_skipped=None)],
        )
        GroupedRepeatAugSampler(dataset, 2, seed=0)
    return dataset


def check_json(root, content):
    """What comes of a file: 'refused' or 'right'; everything else fails."""
    path = root / 'train.json'
    path.write_text(json.dumps(content))
    try:
        dataset = open_data(root)
    except DataSetError as error:
        assert str(path) in str(error)
        assert re.search(r'\b(images|annotations|categories|classes)\b', str(error))
        return 'refused'
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    found = [
        (
            each['img_path'].removeprefix(f'{root}/'),
            each['height'],
            each['width'],
            [
                (one['bbox_label'], one['bbox'], bool(one['ignore_flag']))
                for one in each['instances']
            ],
        )
        for each in infos
    ]
    assert found == expected_contents(content)
    for index, info in enumerate(infos):
        check_sample(dataset, index, info)
    return 'right'


def check_sample(dataset, index, info):
    """The image with masks that have pixels, or another image in its place."""
    try:
        sample = dataset.pipeline({**info, 'sample_idx': index})
    except (BadImageError, FileNotFoundError) as error:
        assert info['img_path'] in str(error)
        return
    if sample is None or sample['data_samples'].is_stand_in:
        return
    instances = sample['data_samples'].gt_instances
    numbers = [row for row, each in enumerate(info['instances']) if not each['ignore_flag']]
    assert set(instances.source_ids[:, 1].tolist()) <= set(numbers)
    assert all(mask.any() for mask in instances.masks.masks)
    assert instances.bboxes.tensor.isfinite().all()


def test_the_file_as_it_is(folder):
    assert check_json(folder, coco()) == 'right'


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_changed_json_is_refused_or_loads_what_it_says(folder, rng):
    check_json(folder, mutated(rng))


@pytest.mark.slow
def test_a_thousand_changed_json(folder):
    counts = Counter(check_json(folder, mutated(random.Random(seed))) for seed in range(1000))
    print(dict(counts))
    assert min(counts['refused'], counts['right']) > 200


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_a_thousand_damaged_images(folder):
    (folder / 'train.json').write_text(json.dumps(coco()))
    dataset, path, files = open_data(folder), folder / '1.png', image_files()
    info, counts = dataset.get_data_info(1), Counter()
    sized = [dict(info), without_size(info)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = {}
    for number, (name, data) in enumerate(files.items()):
        path.write_bytes(data)
        whole[name] = dataset.pipeline({**info, 'sample_idx': 10_000 + number})['inputs']
    for seed in range(1000):
        rng = random.Random(seed)
        name = rng.choice(sorted(files))
        path.write_bytes(damaged(files[name], rng))
        dataset[0]  # which takes the place of the other one
        begin = time.monotonic()
        packed = dataset.pipeline({**sized[seed % 2], 'sample_idx': 10 + seed})
        assert time.monotonic() - begin < 5
        if packed['data_samples'].is_stand_in:
            counts[name, 'left out'] += 1
        else:
            is_whole = torch.equal(packed['inputs'], whole[name])
            counts[name, 'the same' if is_whole else 'another image'] += 1
    print('kB more than before:', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    for key, number in sorted(counts.items()):
        print(*key, number)
    assert counts['PNG', 'another image'] == 0  # it has checksums


def without_size(info):
    return {name: value for name, value in info.items() if name not in ('height', 'width')}
