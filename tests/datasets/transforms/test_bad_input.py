"""Bad input: a clear error, or a skip that is counted and logged while the run goes on.

One table, ``CASES``: what is wrong, and what comes of it. Below it, what holds for all
skips (groups stay whole, counts, limits, workers), and runs of the real Runner.
"""

import copy
import io
import json
import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset, MultiImageMixDataset
from mmengine import fileio
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from PIL import Image, ImageFile
from pycocotools import mask as mask_utils
from torch.utils.data import DataLoader

from lt_mm.datasets.checks import explained
from lt_mm.datasets.converters import write_shapes_dataset
from lt_mm.datasets.held_pipelines import hold_pipelines
from lt_mm.datasets.reporting import DataSetError, Tally
from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler, check_train_dataloader
from lt_mm.datasets.transforms import BadImageError
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.engine.checks import RunCheckError
from tests.training_data import classifier_config, recorded, train_demo

HEIGHT, WIDTH = 48, 64
BAD = 1  # the image of four that is not as it should be
BOX = [10, 8, 20, 16]  # x, y, width, height
NAN, INF = math.nan, math.inf
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
LOAD_MASKS = [LOAD[0], dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
STEPS = [
    dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


@pytest.fixture
def log(tmp_path):
    """The lines of MMEngine's log that warn, without the time."""
    path = tmp_path / 'run.log'
    MMLogger.get_instance(f'bad input {tmp_path}', log_file=str(path))

    def read():
        lines = path.read_text().splitlines()
        return [line.partition('WARNING - ')[2] for line in lines if 'WARNING' in line]

    return read


# -- made data ---------------------------------------------------------------


def picture(height=HEIGHT, width=WIDTH, seed=0):
    """Smooth noise: as JPEG it has bytes in all of its parts."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3))
    return cv2.GaussianBlur(noise.astype(np.uint8), (3, 3), 0)


def encoded(image=None, suffix='.jpg'):
    return cv2.imencode(suffix, picture() if image is None else image)[1].tobytes()


def by_pillow(mode, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture()[..., ::-1].copy()).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def part(percent, suffix='.jpg'):
    data = encoded(suffix=suffix)
    return data[: len(data) * percent // 100]


def turned():
    """A JPEG whose EXIF says that it is to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x112] = 6
    return by_pillow('RGB', 'JPEG', exif=exif)


def claiming(width, height, error=0):
    """A small PNG whose header claims a size, perhaps with a wrong checksum."""
    data = encoded(suffix='.png')
    header = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
    return data[:12] + header + struct.pack('>I', zlib.crc32(header) ^ error) + data[33:]


def claiming_jpeg(width, height):
    data = encoded()
    place = data.index(b'\xff\xc0') + 5
    return data[:place] + struct.pack('>HH', height, width) + data[place + 4 :]


def claiming_bmp(width, height):
    data = encoded(suffix='.bmp')
    return data[:18] + struct.pack('<ii', width, height) + data[26:]


def damaged_tiff(compression):
    """A TIFF with ones in the middle of its pixels; OpenCV fills up what it cannot read."""
    data = bytearray(by_pillow('RGB', 'TIFF', compression=compression))
    data[len(data) // 2 : len(data) // 2 + 60] = b'\xff' * 60
    return bytes(data)


def annotation(number, box, image=BAD, **changes):
    x, y, width, height = box
    outline = [x, y, x + width, y, x + width, y + height, x, y + height]
    entry = dict(
        id=number,
        image_id=image,
        category_id=1,
        bbox=list(box),
        area=abs(width * height),
        iscrowd=0,
        segmentation=[outline],
    )
    return {**entry, **changes}


def coco(*annotations, count=4):
    """Four images with one good annotation each; the bad image has further ones."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT) for i in range(count)]
    good = [annotation(100 + i, BOX, i) for i in range(count)]
    return dict(
        images=images,
        annotations=good + list(annotations),
        categories=[dict(id=1, name='disc'), dict(id=2, name='cube')],
    )


def changed(path, value):
    """The data set with one value changed."""
    content = coco()
    *parents, last = path
    place = content
    for each in parents:
        place = place[each]
    place[last] = value
    return content


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


def write_data(root, content=None, bad_image=None, count=4):
    """A folder with four images, one of them given as bytes or made by a function."""
    root.mkdir(exist_ok=True)
    for i in range(count):
        (root / f'{i}.jpg').write_bytes(encoded(picture(seed=i)))
    if callable(bad_image):
        (root / f'{BAD}.jpg').unlink()
        bad_image(root / f'{BAD}.jpg')
    elif bad_image is not None:
        (root / f'{BAD}.jpg').write_bytes(bad_image)
    text = (
        content
        if isinstance(content, str)
        else json.dumps(coco(count=count) if content is None else content)
    )
    (root / 'train.json').write_text(text)


def open_data(root, steps=None, classes=('disc', 'cube'), filter_cfg=None, load=LOAD, **options):
    steps = copy.deepcopy(load + (STEPS if steps is None else steps))
    metainfo = {} if classes is None else dict(metainfo=dict(classes=classes))
    return CocoDataset(
        ann_file=str(root / 'train.json'),
        data_prefix=dict(img=str(root)),
        **metainfo,
        filter_cfg=filter_cfg,
        pipeline=[InvertiblePipeline(steps, **options)],
    )


def sources(dataset, indices):
    return [dataset[index]['data_samples'].source_id for index in indices]


# -- the table ---------------------------------------------------------------


class Case(NamedTuple):
    """A row: ``check`` is given ``bad`` and looks for ``expected``."""

    name: str
    check: Callable
    bad: Any
    expected: Any


def check_skipped(bad, words, tmp_path, log, content=None):
    """The image is left out: another takes the place of both replicas, one warning."""
    write_data(tmp_path, content, bad)
    dataset = open_data(tmp_path, on_missing_image='skip')
    assert sources(dataset, [0, 0, BAD, BAD, 2, 2]) == [0, 0, 0, 0, 2, 2]
    sources(dataset, [3] * 20)
    assert sources(dataset, [BAD, BAD]) == [3, 3]  # as in the next epoch
    (line,) = log()
    assert words in line and f'{BAD}.jpg' in line and 'so far: 1' in line


def check_loads(bad, shape, tmp_path, log, content=None):
    """The image is what the stock loader makes of it, and is not reported."""
    write_data(tmp_path, content, bad)
    dataset = open_data(tmp_path, steps=[dict(type='PackDetInputs')])
    packed = dataset[BAD]
    assert packed['inputs'].shape == (3, *shape) and log() == []
    stock = CocoDataset(
        ann_file=str(tmp_path / 'train.json'),
        data_prefix=dict(img=str(tmp_path)),
        metainfo=dict(classes=('disc', 'cube')),
        pipeline=[*LOAD, dict(type='PackDetInputs')],
    )[BAD]
    assert torch.equal(packed['inputs'], stock['inputs'])
    assert torch.equal(
        packed['data_samples'].gt_instances.bboxes.tensor,
        stock['data_samples'].gt_instances.bboxes.tensor,
    )
    assert packed['data_samples'].source_id == BAD


class Small(NamedTuple):
    """An image of an unusual size, and transforms to run on it."""

    shape: tuple
    steps: list


def check_small(bad, shape, tmp_path, log):
    """A small image goes through; its one box covers it."""
    height, width = bad.shape
    content = coco()
    content['images'][BAD].update(height=height, width=width)
    content['annotations'][BAD]['bbox'] = [0, 0, width, height]
    write_data(tmp_path, content, encoded(picture(height, width)))
    dataset = open_data(tmp_path, steps=bad.steps)
    for _ in range(2):
        packed = dataset[BAD]
        assert packed['inputs'].shape == (3, *shape)
        instances = packed['data_samples'].gt_instances
        assert instances.bboxes.tensor.tolist() == [[0, 0, shape[1], shape[0]]]
        assert packed['data_samples'].source_id == BAD
    assert log() == []


def check_thin(bad, words, tmp_path, log):
    """An image that no transform can stand is left out like an unreadable one."""
    content = coco()
    content['images'][BAD].update(height=bad[0], width=bad[1])
    content['annotations'][BAD]['bbox'] = [0, 0, bad[1], bad[0]]
    check_skipped(encoded(picture(*bad)), words, tmp_path, log, content)


class Rows(NamedTuple):
    """What is left of the annotations of the bad image.

    Attributes:
        kept: Numbers of the annotations in ``gt_instances``, the good one is 0.
        ignored: Those in ``ignored_instances``.
        words: Part of the one warning; empty where there is none.
    """

    kept: list
    ignored: list
    words: str


def check_rows(annotations, expected, tmp_path, log, load=LOAD_MASKS):
    write_data(tmp_path, coco(*annotations))
    dataset = open_data(tmp_path, load=load, steps=[dict(type='PackDetInputs')])
    _check_rows(dataset, expected, log)


def _check_rows(dataset, expected, log):
    for _ in range(2):  # the second replica's annotations come from the cache
        sample = dataset[BAD]['data_samples']
        for instances, rows in (
            (sample.gt_instances, expected.kept),
            (sample.ignored_instances, expected.ignored),
        ):
            assert instances.source_ids.tolist() == [[BAD, row] for row in rows]
            assert len(instances.bboxes) == len(instances.labels) == len(rows)
            if 'masks' in instances:
                assert len(instances.masks) == len(rows)
            assert instances.bboxes.tensor.isfinite().all()
            assert ((instances.visibility >= 0) & (instances.visibility <= 1)).all()
    if expected.words:
        (line,) = log()
        assert expected.words in line and f'{BAD}.jpg' in line and 'so far: 1' in line
    else:
        assert log() == []


def check_size(size, words, tmp_path, log):
    """The json gives the image another (height, width) than the file has."""
    content = coco()
    content['images'][BAD].update(height=size[0], width=size[1])
    check_skipped(encoded(picture(seed=BAD)), words, tmp_path, log, content)


def check_turned(bad, shape, tmp_path, log):
    """The json gives the size of the image as its EXIF turns it."""
    content = coco()
    content['images'][BAD].update(height=shape[0], width=shape[1])
    check_loads(bad, shape, tmp_path, log, content)


def check_numbers(boxes, expected, tmp_path, log):
    """Boxes xyxy of a data set that, unlike COCO's, looks at none of them."""
    write_data(tmp_path)
    dataset = open_data(tmp_path, steps=[dict(type='PackDetInputs')])
    info = dataset.get_data_info(BAD)
    info['instances'] += [dict(bbox=box, bbox_label=1, ignore_flag=0) for box in boxes]
    dataset.get_data_info = lambda index: copy.deepcopy(info)
    _check_rows(dataset, expected, log)


class File(NamedTuple):
    """An annotation file, and how it is opened."""

    content: Any
    classes: Any = ('disc', 'cube')
    filter_cfg: Any = None


def check_refused(bad, words, tmp_path, log):
    """The data set is refused before training, as ``tools/train.py`` does it."""
    write_data(tmp_path, bad.content)
    cfg = dict(
        type='CocoDataset',
        ann_file='train.json',
        data_root=str(tmp_path),
        filter_cfg=bad.filter_cfg,
    )
    if bad.classes is not None:
        cfg.update(metainfo=dict(classes=bad.classes))
    with pytest.raises(DataSetError) as error, explained(cfg):
        dataset = CocoDataset(**dict(without(cfg, 'type'), data_prefix=dict(img='')))
        GroupedRepeatAugSampler(dataset, 2, seed=0)
    for each in words if isinstance(words, tuple) else (words,):
        assert each in str(error.value)
    assert str(tmp_path / 'train.json') in str(error.value)


def check_no_file(bad, words, tmp_path, log):
    """What the stock data set says is clear, and is left as it is."""
    cfg = dict(type='CocoDataset', ann_file=bad, data_root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=words), explained(cfg):
        CocoDataset(**without(cfg, 'type'))


def check_accepted(bad, words, tmp_path, log):
    """The data set can be trained on; words of the warning, if any."""
    write_data(tmp_path, bad.content)
    dataset = open_data(tmp_path, classes=bad.classes, filter_cfg=bad.filter_cfg)
    GroupedRepeatAugSampler(dataset, 2, seed=0)
    assert [words in line for line in log()] == [True] * bool(words)


class Sampling(NamedTuple):
    num_repeats: int
    batch_size: int
    mode: str = 'full'


def _loader(bad, tmp_path):
    write_data(tmp_path)
    dataset = open_data(tmp_path)
    sampler = GroupedRepeatAugSampler(dataset, bad.num_repeats, mode=bad.mode, seed=0)
    loader = DataLoader(dataset, bad.batch_size, sampler=sampler, collate_fn=pseudo_collate)
    check_train_dataloader(loader)
    return loader


def check_sampling_refused(bad, words, tmp_path, log):
    with pytest.raises(ValueError, match=words):
        _loader(bad, tmp_path)


def check_sampling(bad, groups, tmp_path, log):
    """Every batch holds whole groups."""
    batches = [
        Counter(sample.source_id for sample in batch['data_samples'])
        for batch in _loader(bad, tmp_path)
    ]
    assert [list(batch.values()) for batch in batches] == groups


def check_folder(bad, expected, tmp_path, log):
    """A folder a class, as MMPretrain reads it: (label, source) of what is read."""
    init_default_scope('mmpretrain')
    root = tmp_path / 'pictures'
    for name, content in bad.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    dataset = CustomDataset(
        str(root),
        pipeline=[InvertiblePipeline([dict(type='LoadImageFromFile'), dict(type='PackInputs')])],
    )
    GroupedRepeatAugSampler(dataset, 2, seed=0)
    found = [dataset[index]['data_samples'] for index in range(len(dataset))]
    assert [(int(each.gt_label), each.source_id) for each in found] == expected


def outline(*numbers):
    return dict(segmentation=[list(numbers)])


def rle(height, width, counts=None):
    counts = [100, 50, height * width - 150] if counts is None else counts
    return dict(segmentation=dict(size=[height, width], counts=counts))


def compressed(height, width, said=(HEIGHT, WIDTH)):
    mask = np.zeros((height, width), np.uint8, order='F')
    mask[3:9, 5:20] = 1
    counts = mask_utils.encode(mask)['counts'].decode()
    return dict(segmentation=dict(size=list(said), counts=counts))


def many(count):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [WIDTH - 9, HEIGHT - 9], (count, 2)).tolist()
    return [annotation(1000 + i, [x, y, 8, 9]) for i, (x, y) in enumerate(corners)]


SMALL_STEPS = {
    'resized': STEPS,
    'cropped': [dict(type='RandomCrop', crop_size=(32, 32)), STEPS[-1]],
}
# OpenCV before 4.12 decodes a part of a JPEG; what is said then is another thing.
CANNOT = '1.jpg'
EXTRA = [20, 20, 10, 10]  # a second annotation, good but for what a case changes
NO_CLASS = 'none of the classes'

CASES = [
    # Images that cannot be read.
    Case('truncated JPEG, 10 %', check_skipped, part(10), 'cannot be read'),
    Case('truncated JPEG, 50 %', check_skipped, part(50), CANNOT),
    Case('truncated JPEG, 90 %', check_skipped, part(90), CANNOT),
    Case('truncated PNG', check_skipped, part(50, '.png'), 'cannot be read'),
    Case('truncated BMP', check_skipped, part(50, '.bmp'), 'cannot be read'),
    Case('truncated WebP', check_skipped, part(50, '.webp'), 'cannot be read'),
    Case('empty file', check_skipped, b'', 'cannot be read'),
    Case('text named .jpg', check_skipped, b'<html>404</html>', 'cannot be read'),
    Case('directory named .jpg', check_skipped, Path.mkdir, 'it is a directory'),
    Case('pipe named .jpg', check_skipped, os.mkfifo, 'a directory, pipe or device'),
    Case('PNG of 3 GB', check_skipped, claiming(30000, 30000), 'is not decoded'),
    Case('JPEG of 3 GB', check_skipped, claiming_jpeg(65000, 16000), 'is not decoded'),
    Case('BMP of 3 TB', check_skipped, claiming_bmp(10**6, 10**6), '1.jpg'),
    Case('PNG of 3 GB, damaged', check_skipped, claiming(30000, 30000, 1), 'cannot be read'),
    Case('damaged deflated TIFF', check_skipped, damaged_tiff('tiff_adobe_deflate'), 'incorrect'),
    Case('damaged LZW TIFF', check_skipped, damaged_tiff('tiff_lzw'), 'cannot be read'),
    Case('missing file', check_skipped, lambda path: None, 'there is no image'),
    Case(
        'link to nothing',
        check_skipped,
        lambda path: path.symlink_to('gone.jpg'),
        'there is no image',
    ),
    # Images of unusual kinds.
    Case('grayscale JPEG', check_loads, encoded(picture()[..., 0]), (HEIGHT, WIDTH)),
    Case('CMYK JPEG', check_loads, by_pillow('CMYK', 'JPEG'), (HEIGHT, WIDTH)),
    Case(
        'progressive JPEG', check_loads, by_pillow('RGB', 'JPEG', progressive=True), (HEIGHT, WIDTH)
    ),
    Case('JPEG with a tail', check_loads, encoded() + b'\0' * 99, (HEIGHT, WIDTH)),
    Case('RGBA PNG', check_loads, by_pillow('RGBA', 'PNG'), (HEIGHT, WIDTH)),
    Case('palette PNG', check_loads, by_pillow('P', 'PNG'), (HEIGHT, WIDTH)),
    Case(
        '16-bit PNG',
        check_loads,
        encoded(picture().astype(np.uint16) * 257, '.png'),
        (HEIGHT, WIDTH),
    ),
    # Images of unusual sizes.
    Case('1 x 1 pixel, resized', check_small, Small((1, 1), STEPS), (48, 48)),
    Case('1 x 1 pixel, cropped', check_small, Small((1, 1), SMALL_STEPS['cropped']), (1, 1)),
    Case('smaller than the crop', check_small, Small((20, 24), SMALL_STEPS['cropped']), (20, 24)),
    Case('1 pixel high', check_small, Small((1, 40), STEPS), (2, 64)),
    Case('1 pixel wide', check_small, Small((40, 1), STEPS), (64, 2)),
    Case('1 pixel high, 3000 wide', check_thin, (1, 3000), 'cannot be transformed by Resize'),
    Case('1 pixel wide, 3000 high', check_thin, (3000, 1), 'cannot be transformed by Resize'),
    # Boxes in COCO json: the first row of most is what the stock data set drops.
    Case('zero area', check_rows, [annotation(1, [5, 5, 0, 9])], Rows([0], [], '')),
    Case('negative size', check_rows, [annotation(1, [30, 30, -9, -9])], Rows([0], [], '')),
    Case('outside', check_rows, [annotation(1, [500, 500, 9, 9])], Rows([0], [], '')),
    Case('NaN', check_rows, [annotation(1, [NAN, 5, 9, 9])], Rows([0], [], '')),
    Case('partly outside', check_rows, [annotation(1, [60, 40, 30, 30])], Rows([0, 1], [], '')),
    Case(
        'infinite width',
        check_rows,
        [annotation(1, [5, 5, INF, 9]), annotation(2, EXTRA)],
        Rows([0, 2], [], 'number 1: the box [5.0, 5.0, inf, 14.0] is not finite'),
    ),
    Case(
        'huge',
        check_rows,
        [annotation(1, [-1e30, -1e30, 2e30, 2e30])],
        Rows([0], [], 'larger than any image; dropped'),
    ),
    Case('unknown category', check_rows, [annotation(1, EXTRA, category_id=9)], Rows([0], [], '')),
    Case(
        'equal boxes', check_rows, [annotation(1, BOX), annotation(2, BOX)], Rows([0, 1, 2], [], '')
    ),
    Case('5000 instances', check_rows, many(5000), Rows(list(range(5001)), [], '')),
    # Sizes in the json.
    Case('json says larger', check_size, (200, 300), 'has 64 x 48 pixels, but the annotation file'),
    Case('json says smaller', check_size, (20, 30), 'says 30 x 20'),
    Case('json says swapped', check_size, (WIDTH, HEIGHT), "color_type='color_ignore_orientation'"),
    Case(
        'turned by EXIF, json does not say it',
        check_skipped,
        turned(),
        'has 48 x 64 pixels, but the annotation file says 64 x 48',
    ),
    Case('turned by EXIF, json says it', check_turned, turned(), (WIDTH, HEIGHT)),
    # Boxes of data sets that check nothing.
    Case(
        'NaN, unchecked',
        check_numbers,
        [[NAN, 1, 5, 5], [20, 20, 30, 30]],
        Rows([0, 2], [], 'is not finite; dropped'),
    ),
    Case(
        'infinite, unchecked',
        check_numbers,
        [[-INF, -INF, INF, INF]],
        Rows([0], [], 'is not finite; dropped'),
    ),
    Case(
        'zero area, unchecked',
        check_numbers,
        [[5, 5, 5, 9], [20, 20, 30, 30]],
        Rows([0, 2], [], 'has no area; dropped'),
    ),
    Case(
        'corners swapped, unchecked',
        check_numbers,
        [[30, 30, 5, 5]],
        Rows([0], [], 'has no area; dropped'),
    ),
    Case(
        'outside, unchecked',
        check_numbers,
        [[500, 5, 510, 9]],
        Rows([0], [], 'outside the image of 64 x 48 pixels; dropped'),
    ),
    Case(
        'three numbers, unchecked',
        check_numbers,
        [[1, 2, 3], [20, 20, 30, 30]],
        Rows([0, 2], [], 'is not four numbers; dropped'),
    ),
    Case('no box, unchecked', check_numbers, [None], Rows([0], [], 'not four numbers')),
    Case('partly outside, unchecked', check_numbers, [[60, 40, 90, 90]], Rows([0, 1], [], '')),
    Case('many bad ones, unchecked', check_numbers, [[NAN] * 4] * 7, Rows([0], [], 'and 4 more')),
    # Crowds and masks.
    Case(
        'some crowds',
        check_rows,
        [annotation(1, EXTRA, iscrowd=1, **rle(HEIGHT, WIDTH)), annotation(2, EXTRA)],
        Rows([0, 2], [1], ''),
    ),
    Case(
        'polygon of two points',
        check_rows,
        [annotation(1, EXTRA, **outline(5, 5, 9, 9))],
        Rows([0], [1], 'no polygon of its mask has three points; ignored'),
    ),
    Case(
        'polygon of two points beside one of four',
        check_rows,
        [annotation(1, EXTRA, segmentation=[[20, 20, 29, 20, 29, 29, 20, 29], [5, 5, 9, 9]])],
        Rows([0, 1], [], '1 polygons of its mask have not three points; dropped'),
    ),
    Case(
        'polygon of 7 numbers',
        check_rows,
        [annotation(1, EXTRA, **outline(20, 20, 29, 20, 29, 29, 9))],
        Rows([0], [1], 'has 7 numbers'),
    ),
    Case(
        'polygon without a pixel',
        check_rows,
        [annotation(1, EXTRA, **outline(20, 20, 20.1, 20, 20.1, 20.1))],
        Rows([0], [1], 'number 1: its mask has no pixel; ignored'),
    ),
    Case(
        'polygon outside the image',
        check_rows,
        [annotation(1, EXTRA, **outline(120, 120, 129, 120, 129, 129)), annotation(2, BOX)],
        Rows([0, 2], [1], 'number 1: its mask has no pixel; ignored'),
    ),
    Case(
        'RLE without a pixel',
        check_rows,
        [annotation(1, EXTRA, **rle(HEIGHT, WIDTH, [HEIGHT * WIDTH]))],
        Rows([0], [1], 'its mask has no pixel'),
    ),
    Case(
        'RLE without counts',
        check_rows,
        [annotation(1, EXTRA, segmentation=dict(size=[HEIGHT, WIDTH]))],
        Rows([0], [1], 'the counts of its mask are None'),
    ),
    Case(
        'mask that is a number',
        check_rows,
        [annotation(1, EXTRA, segmentation=5)],
        Rows([0], [1], 'its mask is 5'),
    ),
    Case(
        'no segmentation',
        check_rows,
        [annotation(1, EXTRA, segmentation=[])],
        Rows([0], [1], 'number 1: it has no mask; ignored'),
    ),
    Case(
        'NaN in a polygon',
        check_rows,
        [annotation(1, EXTRA, **outline(NAN, 5, 9, 5, 9, 9)), annotation(2, EXTRA)],
        Rows([0, 2], [1], 'a polygon of its mask is not finite'),
    ),
    Case(
        'huge polygon',
        check_rows,
        [annotation(1, EXTRA, **outline(0, 0, 1e12, 0, 9, 9))],
        Rows([0], [1], 'larger than any image'),
    ),
    Case(
        'polygon that is no list',
        check_rows,
        [annotation(1, EXTRA, segmentation=[5, 5, 9, 5, 9, 9])],
        Rows([0], [1], 'not a list of polygons'),
    ),
    Case(
        'RLE of another size',
        check_rows,
        [annotation(1, EXTRA, **rle(99, 99))],
        Rows([0], [1], 'its mask is of 99 x 99 pixels, the image of 64 x 48'),
    ),
    Case(
        'RLE too short',
        check_rows,
        [annotation(1, EXTRA, **rle(HEIGHT, WIDTH, [9, 9]))],
        Rows([0], [1], 'cover 18 of 3072 pixels'),
    ),
    Case(
        'RLE with a negative run',
        check_rows,
        [annotation(1, EXTRA, **rle(HEIGHT, WIDTH, [-9, 9, HEIGHT * WIDTH]))],
        Rows([0], [1], 'the runs of its mask'),
    ),
    Case(
        'compressed RLE',
        check_rows,
        [annotation(1, EXTRA, **compressed(HEIGHT, WIDTH))],
        Rows([0, 1], [], ''),
    ),
    Case(
        'compressed RLE too short',
        check_rows,
        [annotation(1, EXTRA, **compressed(20, 30))],
        Rows([0], [1], 'cover 600 of 3072 pixels'),
    ),
    # Annotation files.
    Case('no file', check_no_file, 'nowhere.json', 'nowhere.json'),
    Case('json is empty', check_refused, File(''), ('valid json', 'it has 0 bytes')),
    Case('json is text', check_refused, File('hello'), 'valid json'),
    Case(
        'json is truncated',
        check_refused,
        File(json.dumps(coco())[:300]),
        ('valid json', 'it has 300 bytes'),
    ),
    Case('json is a list', check_refused, File([1]), 'holds a list; expected COCO json'),
    Case('no images', check_refused, File(without(coco(), 'images')), "no list 'images'"),
    Case(
        'no categories', check_refused, File(without(coco(), 'categories')), "no list 'categories'"
    ),
    Case(
        'no annotations key',
        check_refused,
        File(without(coco(), 'annotations')),
        'none of the 4 images',
    ),
    Case(
        'no annotations at all',
        check_refused,
        File(dict(coco(), annotations=[])),
        'none of the 4 images',
    ),
    Case(
        'all are crowds',
        check_refused,
        File(dict(coco(), annotations=[annotation(1, BOX, iscrowd=1)])),
        'that is not a crowd',
    ),
    Case(
        'equal annotation ids',
        check_refused,
        File(coco(annotation(100, EXTRA))),
        'annotations[4] with the id 100 of another one',
    ),
    Case(
        'equal image ids',
        check_refused,
        File(changed(['images', 2, 'id'], 1)),
        'images[2] with the id 1 of another one, images[1]',
    ),
    Case(
        'equal category ids',
        check_refused,
        File(changed(['categories', 1, 'id'], 1)),
        'categories[1] with the id 1 of another one, categories[0]',
    ),
    Case(
        'equal category names',
        check_refused,
        File(changed(['categories', 1, 'name'], 'disc')),
        "has the name 'disc' of categories[0] more than once",
    ),
    Case(
        'category id as text',
        check_refused,
        File(changed(['categories', 0, 'id'], '1')),
        "annotations[0].category_id = 1, which is not the id '1' of categories",
    ),
    Case(
        'image id as text',
        check_refused,
        File(changed(['annotations', 2, 'image_id'], '2')),
        "annotations[2].image_id = '2', which is not the id 2 of images",
    ),
    Case(
        'height is a text',
        check_refused,
        File(changed(['images', 3, 'height'], 'tall')),
        ("images[3].height: 'tall'", 'expected a whole number of pixels'),
    ),
    Case(
        'height is 0',
        check_refused,
        File(changed(['images', 3, 'height'], 0)),
        'images[3].height: 0',
    ),
    Case(
        'nested too deeply',
        check_refused,
        File(json.dumps(coco())[:-1] + ', "x": ' + '[' * 10**5 + ']' * 10**5 + '}'),
        'nested too deeply',
    ),
    Case(
        'annotations of no image',
        check_accepted,
        File(changed(['annotations', 2, 'image_id'], 77)),
        '1 annotations have no entry in images, and are left out; the first is annotations[2]',
    ),
    Case(
        'annotation outside its image',
        check_accepted,
        File(coco(annotation(1, [500, 5, 9, 9]))),
        '1 annotations are left out because their box lies outside the image',
    ),
    Case(
        'annotation of no area',
        check_accepted,
        File(coco(annotation(1, EXTRA, area=0))),
        '1 annotations are left out because their area is not above 0',
    ),
    Case(
        'annotation without bbox',
        check_refused,
        File(coco(without(annotation(1, EXTRA), 'bbox'))),
        'annotations[4] without bbox',
    ),
    Case(
        'bbox of three numbers',
        check_refused,
        File(coco(annotation(1, EXTRA, bbox=[1, 2, 3]))),
        ('annotations[4].bbox: [1, 2, 3]', 'four numbers'),
    ),
    Case(
        'annotation without area',
        check_refused,
        File(coco(without(annotation(1, EXTRA), 'area'))),
        'annotations[4] without area',
    ),
    Case(
        'no classes in the config',
        check_refused,
        File(coco(), None),
        (NO_CLASS, "'person'", "its categories are ('disc', 'cube')", 'metainfo'),
    ),
    Case(
        'other class names',
        check_refused,
        File(coco(), ('Disc', 'Cube')),
        (NO_CLASS, "('Disc', 'Cube')", "('disc', 'cube')"),
    ),
    Case(
        'other class names, empty images filtered',
        check_refused,
        File(coco(), ('Disc', 'Cube'), dict(filter_empty_gt=True)),
        NO_CLASS,
    ),
    Case('classes without a comma', check_refused, File(coco(), 'disc'), "classes=('disc', )"),
    Case(
        'all images too small for the filter',
        check_refused,
        File(coco(), filter_cfg=dict(min_size=500)),
        ('4 images 0 are at least 500', 'filter_cfg'),
    ),
    Case(
        'no image has the class',
        check_refused,
        File(coco(), ('cube',), dict(filter_empty_gt=True)),
        'filter_empty_gt',
    ),
    Case(
        'the last class is missing',
        check_accepted,
        File(coco(), ('disc', 'cube', 'cow')),
        "has 2 of the 3 classes ('disc', 'cube', 'cow')",
    ),
    Case(
        'a class before others is missing',
        check_refused,
        File(coco(), ('disc', 'cow', 'cube')),
        ("gives the label 1 to 'cube'", "classes[1] is 'cow'", "Here: classes=('disc', 'cube')"),
    ),
    Case(
        'classes in another order',
        check_refused,
        File(coco(), ('cube', 'disc')),
        ("gives the label 0 to 'disc'", "classes[0] is 'cube'", "Here: classes=('disc', 'cube')"),
    ),
    # Sampling.
    Case('m = 1', check_sampling_refused, Sampling(1, 4), 'num_repeats=1 makes no replicas'),
    Case('m = 0', check_sampling_refused, Sampling(0, 4), 'num_repeats=0'),
    Case('m = 1.5', check_sampling_refused, Sampling(1.5, 4), 'not an int'),
    Case(
        'batch size not divisible by m',
        check_sampling_refused,
        Sampling(3, 4),
        'batch_size=4 is not a multiple of num_repeats=3.* to 3 or 6',
    ),
    Case(
        'batch size below m',
        check_sampling_refused,
        Sampling(8, 4),
        'batch_size=4 is not a multiple of num_repeats=8.* to 8',
    ),
    Case('m above the data set, full', check_sampling, Sampling(6, 6), [[6]] * 4),
    Case('m above the data set, v1', check_sampling, Sampling(6, 6, 'v1'), [[6]]),
    # Folders of a classifier.
    Case(
        'stray text file',
        check_folder,
        {'a/0.jpg': encoded(), 'a/notes.txt': b'x', 'b/0.jpg': encoded(), 'c.txt': b''},
        [(0, 0), (1, 1)],
    ),
    Case(
        'empty class folder',
        check_folder,
        {'a/0.jpg': encoded(), 'b': None, 'c/0.jpg': encoded()},
        [(0, 0), (2, 1)],
    ),
    Case(
        'mixed-case extensions',
        check_folder,
        {'a/0.JPG': encoded(), 'a/1.Png': encoded(suffix='.png'), 'b/2.jpeg': encoded()},
        [(0, 0), (0, 1), (1, 2)],
    ),
    Case(
        'truncated file of a class',
        check_folder,
        {'a/0.jpg': encoded(), 'a/1.jpg': part(50), 'b/0.jpg': encoded()},
        [(0, 0), (0, 0), (1, 2)],
    ),
]


def test_the_table_is_long_and_names_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_case(case, tmp_path, log):
    case.check(case.bad, case.expected, tmp_path, log)


# -- what holds for all skips ------------------------------------------------


@pytest.fixture
def lenient():
    """A decoder that fills up what is missing, as OpenCV before 4.12 does."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    yield [dict(LOAD[0], imdecode_backend='pillow'), LOAD[1]]
    ImageFile.LOAD_TRUNCATED_IMAGES = before


def with_thumbnail(jpeg):
    """A JPEG whose header holds a whole other one, with its own end."""
    thumbnail = encoded(picture(8, 8))
    size = (len(thumbnail) + 2).to_bytes(2, 'big')
    return jpeg[:2] + b'\xff\xe1' + size + thumbnail + jpeg[2:]


@pytest.mark.parametrize(
    'data', [part(50), part(99), encoded()[:-2], with_thumbnail(encoded())[:-100]]
)
def test_a_truncated_jpeg_that_decodes_is_noticed(lenient, data, tmp_path, log):
    write_data(tmp_path, bad_image=data)
    dataset = open_data(tmp_path, load=lenient)
    assert sources(dataset, [0, 0, BAD, BAD]) == [0, 0, 0, 0]
    (line,) = log()
    assert 'is a truncated JPEG' in line and f'{len(data)} bytes' in line


@pytest.mark.parametrize(
    'data',
    [
        with_thumbnail(encoded()),
        encoded() + b'\xff\xd8tail',
        by_pillow('RGB', 'JPEG', progressive=True),
    ],
)
def test_a_whole_jpeg_is_not(lenient, data, tmp_path, log):
    write_data(tmp_path, bad_image=data)
    assert sources(open_data(tmp_path, load=lenient), [0, BAD, BAD]) == [0, BAD, BAD]
    assert log() == []


class Store(fileio.LocalBackend):
    """A store in which a file is missing, empty, or cannot be read."""

    def get(self, path):
        data = super().get(path)
        if data == b'missing':
            return None  # as LMDB and Petrel do
        if data == b'locked':
            raise KeyError('locked')
        return memoryview(data)


fileio.register_backend('store', Store, force=True)


class LoadOwn(BaseTransform):
    def transform(self, results):
        data = Path(results['img_path']).read_bytes()
        results['img'] = {encoded(picture(seed=0)): picture()}[data]
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


STORE = dict(LOAD[0], backend_args=dict(backend='store'))


@pytest.mark.parametrize(
    'load, bad, words',
    [
        (STORE, b'missing', 'there is no image'),
        (STORE, b'locked', "KeyError: 'locked'"),
        (STORE, b'text', 'cannot be read'),
        (STORE, part(50), 'cannot be read'),
        (STORE, claiming(30000, 30000), 'is not decoded'),
        (dict(LOAD[0], imdecode_backend='tifffile'), b'II*\0text', 'cannot be read'),
        (
            dict(LOAD[0], imdecode_backend='pillow'),
            claiming(30000, 30000),
            'DecompressionBombError',
        ),
        (LoadOwn(), b'text', "KeyError: b'text'"),
    ],
)
def test_whatever_is_raised_the_file_is_named_and_left_out(load, bad, words, tmp_path, log):
    write_data(tmp_path, bad_image=bad)
    limit = None if 'Bomb' in words else 10**6
    dataset = open_data(tmp_path, load=[load, LOAD[1]], on_missing_image='skip', max_pixels=limit)
    if 'tifffile' in str(load):
        pytest.importorskip('tifffile')
        (tmp_path / '0.jpg').write_bytes(by_pillow('RGB', 'TIFF'))
    assert sources(dataset, [0, 0, BAD, BAD]) == [0] * 4
    (line,) = log()
    assert words in line and f'{BAD}.jpg' in line


def test_a_package_that_is_missing_is_not_the_fault_of_a_file(tmp_path, monkeypatch):
    write_data(tmp_path)
    monkeypatch.setattr('mmcv.imfrombytes', Mock(side_effect=ImportError('no tifffile')))
    with pytest.raises(ImportError, match='no tifffile'):
        open_data(tmp_path)[0]


@pytest.mark.parametrize(
    'make, words',
    [
        (os.mkfifo, 'pipe or device'),
        (lambda path: None, 'there is no image'),
        (lambda path: path.write_bytes(b'text'), 'cannot be read'),
        (lambda path: path.write_bytes(claiming(30000, 30000)), 'is not decoded'),
        (lambda path: path.write_bytes(encoded(picture(9, 9), '.png')), 'is of shape (9, 9, 3)'),
        (lambda path: path.write_bytes(encoded(picture()[..., 0], '.png')), ''),
    ],
)
def test_a_map_of_classes_is_checked_as_images_are(make, words, tmp_path, log):
    write_data(tmp_path)
    for number in range(4):
        (tmp_path / f'{number}.png').write_bytes(encoded(picture()[..., 0], '.png'))
    (tmp_path / f'{BAD}.png').unlink()
    make(tmp_path / f'{BAD}.png')
    load = [LOAD[0], dict(LOAD[1], with_seg=True)]
    dataset = CocoDataset(
        ann_file=str(tmp_path / 'train.json'),
        data_prefix=dict(img=str(tmp_path), seg=str(tmp_path)),
        metainfo=dict(classes=('disc', 'cube')),
        pipeline=[InvertiblePipeline([*load, *STEPS], on_missing_image='skip')],
    )
    assert sources(dataset, [0, BAD, BAD]) == ([0, 0, 0] if words else [0, BAD, BAD])
    assert [words in line and f'{BAD}.png' in line for line in log()] == [True] * bool(words)


def test_a_stand_in_that_cannot_be_read_either_is_left_out_too(tmp_path, log):
    write_data(tmp_path, bad_image=b'damaged')
    dataset = open_data(tmp_path)
    assert sources(dataset, [3, 0]) == [3, 0]
    damage(tmp_path, [0])
    assert sources(dataset, [BAD])[0] in (2, 3)
    assert {line.partition('.jpg')[0][-1] for line in log()} == {'0', '1'}


def test_a_missing_file_raises_unless_told_otherwise(tmp_path):
    write_data(tmp_path, bad_image=lambda path: None)
    with pytest.raises(FileNotFoundError, match="on_missing_image='skip'") as error:
        open_data(tmp_path)[BAD]
    assert str(tmp_path / '1.jpg') in str(error.value)
    assert 'data_root and data_prefix' in str(error.value)


def test_a_bad_image_raises_if_told_so(tmp_path):
    write_data(tmp_path, bad_image=part(50))
    with pytest.raises(BadImageError, match="on_bad_image='skip'") as error:
        open_data(tmp_path, on_bad_image='raise')[BAD]
    assert str(tmp_path / '1.jpg') in str(error.value)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(on_bad_image='ignore'), "on_bad_image is 'ignore'"),
        (dict(on_missing_image=None), 'on_missing_image is None'),
        (dict(max_skipped=-1), 'max_skipped is -1'),
        (dict(max_skipped=0.1), 'max_skipped is 0.1'),
        (dict(max_pixels=0), 'max_pixels is 0'),
        (dict(max_pixels=1e6), 'max_pixels is 1000000.0'),
        (dict(max_pixels=10**9), 'MAX_IMAGE_PIXELS = None'),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ValueError, match=words):
        InvertiblePipeline(LOAD + STEPS, **options)


def damage(root, numbers):
    for number in numbers:
        (root / f'{number}.jpg').write_bytes(b'damaged')


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(metainfo=dict(classes=5)), 'classes=5'),
        (dict(metainfo=dict(classes=('disc', 7))), "classes=('disc', 7)"),
        (dict(filter_cfg=dict(min_size='32')), "min_size='32'"),
        (dict(metainfo=5), None),
        (dict(filter_cfg=5), None),
        (dict(type='NoSuchDataset'), None),
        (dict(ann_file=5), None),
        (dict(data_root=5), None),
        (dict(ann_file=''), None),
        (dict(datasets=5), None),
    ],
)
def test_the_explainer_stands_any_config(options, words, tmp_path):
    """Where it has nothing to say, the error that came is left as it is."""
    write_data(tmp_path)
    cfg = dict(type='CocoDataset', ann_file='train.json', data_root=str(tmp_path))
    cfg = {**cfg, 'metainfo': dict(classes=('disc', 'cube')), **options}
    error = RuntimeError('what the stock data set says')
    with pytest.raises((RuntimeError, DataSetError)) as found, explained(cfg):
        raise error
    assert found.value is error if words is None else words in str(found.value)


def test_too_many_raise(tmp_path, log):
    write_data(tmp_path, count=8)
    damage(tmp_path, [1, 3, 5])
    dataset = open_data(tmp_path, max_skipped=2)
    assert sources(dataset, [0, 1, 3, 1, 3]) == [0] * 5 and len(log()) == 2
    with pytest.raises(BadImageError, match='3 images.*max_skipped=2') as error:
        dataset[5]
    assert '5.jpg' in str(error.value) and 'None for any number' in str(error.value)
    without_limit = open_data(tmp_path, max_skipped=None)
    assert sources(without_limit, [0, 1, 3, 5]) == [0] * 4


def test_nothing_but_bad_images_raises(tmp_path):
    write_data(tmp_path)
    damage(tmp_path, range(4))
    with pytest.raises(BadImageError, match='20 images in a row.*data_prefix'):
        open_data(tmp_path)[0]


def test_a_bad_first_image_gives_a_whole_group(tmp_path):
    """Nothing was loaded that could take its place: the data set finds another."""
    write_data(tmp_path, bad_image=b'damaged')
    found = sources(open_data(tmp_path), [BAD] * 3)
    assert len(set(found)) == 1 and found[0] != BAD


def test_an_image_that_is_always_rejected_gives_a_whole_group(tmp_path, log):
    content = coco()
    content['annotations'][BAD]['bbox'] = [4, 4, 2, 2]
    write_data(tmp_path, content)
    steps = [dict(type='FilterAnnotations', min_gt_bbox_wh=(5, 5)), *STEPS]
    dataset = open_data(tmp_path, steps=steps)
    assert sources(dataset, [0, 0, BAD, BAD, 2, 2]) == [0, 0, 0, 0, 2, 2]
    sources(dataset, [3] * 20 + [BAD])
    (line,) = log()
    assert 'reject' in line and '16 attempts' in line and f'{BAD}.jpg' in line


def test_replicas_that_are_mixed_stay_whole(tmp_path, log):
    """Images to mix with are loaded between the replicas of a bad one."""
    write_data(tmp_path, bad_image=b'damaged', count=6)
    inner = CocoDataset(
        ann_file=str(tmp_path / 'train.json'),
        data_prefix=dict(img=str(tmp_path)),
        metainfo=dict(classes=('disc', 'cube')),
        pipeline=[InvertiblePipeline(LOAD)],
    )
    dataset = MultiImageMixDataset(
        inner,
        [
            dict(
                type='lt_mm.InvertiblePipeline',
                transforms=[
                    dict(type='Mosaic', img_scale=(WIDTH, HEIGHT)),
                    dict(type='PackDetInputs'),
                ],
            )
        ],
    )
    hold_pipelines(dataset)  # as the samplers and the tools do
    for _ in range(5):
        assert sources(dataset, [0, 0]) == [0, 0]
        found = sources(dataset, [BAD] * 4)
        assert len(set(found)) == 1 and found[0] != BAD
    assert len(log()) == 1


def test_workers_count_together(tmp_path, log):
    write_data(tmp_path, count=24)
    bad = [2, 7, 11, 16, 21]
    damage(tmp_path, bad)
    dataset = open_data(tmp_path)
    sampler = GroupedRepeatAugSampler(dataset, 2, seed=0)
    loader = DataLoader(dataset, 4, sampler=sampler, num_workers=2, collate_fn=pseudo_collate)
    for epoch in range(2):  # each with workers of its own
        sampler.set_epoch(epoch)
        for batch in loader:
            counts = Counter(each.source_id for each in batch['data_samples'])
            assert not set(counts) & set(bad)
            assert all(count % 2 == 0 for count in counts.values())
    left_out = [line for line in log() if ' cannot be read' in line]
    assert sorted(int(Path(line.partition(' cannot')[0]).stem) for line in left_out) == bad
    assert max(int(line.rpartition(': ')[2].rstrip(')')) for line in left_out) == len(bad)


def test_tally():
    tally = Tally(3)
    assert [tally.add(number) for number in (5, 2, 5, 8, 2)] == [True, True, False, True, False]
    assert len(tally) == 3 and tally.is_full()
    assert not tally.add(1) and len(copy.deepcopy(tally)) == 3


# -- with the real Runner ----------------------------------------------------


@pytest.fixture
def shapes(tmp_path):
    write_shapes_dataset(tmp_path / 'data', num_train=8, num_val=2, image_size=(96, 96))
    return tmp_path / 'data'


def edit(shapes, change):
    path = shapes / 'annotations' / 'train.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def file_of(shapes, number):
    return sorted((shapes / 'train').iterdir())[number]


def train(shapes, **options):
    runner = train_demo(
        shapes,
        shapes.parent / 'work',
        **{
            'train_cfg.val_begin': 9,
            'train_dataloader.dataset.filter_cfg': None,
            'train_dataloader.dataset.pipeline.0.transforms.2.scale': (96, 96),
            'model.train_cfg.rpn_proposal.max_per_img': 30,
            **options,
        },
    )
    text = next((shapes.parent / 'work').glob('*/*.log')).read_text()
    return recorded(runner), text


def assert_finite(outputs, count):
    assert len(outputs) == count
    assert all(math.isfinite(value) for step in outputs for value in step.values())


def spoil(content):
    """Annotations of every bad kind, on top of the good ones."""
    size = len(content['annotations'])
    content['annotations'] += [
        annotation(size + 1 + row, box, content['images'][row % 8]['id'])
        for row, box in enumerate(
            [
                [5, 5, INF, 9],
                [5, 5, 9, INF],
                [-1e30, -1e30, 2e30, 2e30],
                [NAN, 5, 9, 9],
                [5, 5, 0, 0],
                [60, 60, 90, 90],
                [500, 500, 9, 9],
            ]
        )
    ]
    for crowd in content['annotations'][::5]:
        crowd['iscrowd'] = 1


def test_a_detector_trains_on_bad_images_and_annotations(shapes):
    file_of(shapes, 2).write_bytes(file_of(shapes, 2).read_bytes()[:-300])
    file_of(shapes, 4).write_bytes(b'')
    file_of(shapes, 5).write_bytes(b'<html>404</html>')
    edit(shapes, spoil)
    outputs, text = train(shapes, **{'train_dataloader.num_workers': 2})
    assert_finite(outputs, 4)  # 8 sources, each twice, in batches of 4
    assert sum(step['lt_num_paired'] for step in outputs) > 0
    left_out = [line for line in text.splitlines() if 'left out, and another' in line]
    bad = {file_of(shapes, number).name for number in (2, 4, 5)}
    assert {name for name in bad if any(name in line for line in left_out)} == bad
    assert text.count('is not finite; dropped') >= 1
    assert 'nan' not in text.lower().partition('epoch(train)')[2]


@pytest.mark.slow
def test_a_detector_trains_with_5000_instances_in_an_image(shapes):
    def crowd_in(content):
        size = len(content['annotations'])
        content['annotations'] += [
            dict(each, id=size + each['id'], image_id=content['images'][0]['id'])
            for each in many(5000)
        ]

    edit(shapes, crowd_in)
    outputs, _ = train(shapes, **{'train_dataloader.dataset.indices': 2})
    assert_finite(outputs, 1)  # two sources, each twice


def test_a_missing_file_stops_a_run_with_its_name(shapes):
    path = file_of(shapes, 3)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="on_missing_image='skip'") as error:
        train(shapes, **{'train_dataloader.dataset.indices': [3, 4]})
    assert path.name in str(error.value)


def test_a_wrong_folder_stops_a_run_of_skips(shapes):
    with pytest.raises(RunCheckError, match=r'(?s)in\s+a\s+row.*data_prefix'):
        train(
            shapes,
            **{
                'train_dataloader.dataset.data_prefix.img': 'nowhere/',
                'train_dataloader.dataset.pipeline.0.on_missing_image': 'skip',
            },
        )


def test_a_truncated_json_stops_a_run_before_training(shapes):
    path = shapes / 'annotations' / 'train.json'
    path.write_text(path.read_text()[:-50])
    with pytest.raises(DataSetError, match='train.json is not complete, valid json'):
        train(shapes)


def test_a_classifier_trains_on_bad_images(tmp_path):
    pictures = tmp_path / 'pictures'
    for row in range(12):
        path = pictures / 'ab'[row % 2] / f'{row}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            {3: part(50), 4: b'text', 7: encoded(picture(1, 1))}.get(
                row, encoded(picture(32, 32, row))
            )
        )
    cfg = classifier_config(pictures, tmp_path / 'work')
    runner = Runner.from_cfg(cfg)
    runner.train()
    outputs = recorded(runner)
    assert_finite(outputs, 6)
    assert all(step['lt_num_paired'] == 8 for step in outputs)
