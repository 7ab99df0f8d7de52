"""Loading of images: the invertible pipeline against the stock one.

The images are made: JPEGs of 1280 x 960 pixels, with about as many bytes a pixel as
COCO's photos have. The pipeline is that of MMDetection's Faster R-CNN.
"""

import copy
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.registry import DATA_SAMPLERS, TRANSFORMS
from mmdet.utils import register_all_modules
from mmengine.dataset import BaseDataset, Compose, pseudo_collate
from torch.utils.data import DataLoader

import lt_mm  # noqa: F401  (fills the registries)
from tools.benchmarks.timing import Comparison, Row, Timer

SIZE, SMALL_SIZE = (960, 1280), (240, 320)
NUM_BOXES = 10
NUM_REPEATS = 4
FIXED: dict[str, Any] = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
RANDOM = dict(type='RandomResize', scale=[(1333, 640), (1333, 800)], keep_ratio=True)
PIPELINE: list[dict[str, Any]] = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    FIXED,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]


class MadeImages(BaseDataset):
    """Made images with random boxes.

    Args:
        folder: Where the JPEGs are written.
        count: Number of images.
        size: (height, width) in pixels.
        num_boxes: Boxes of each image.
        pipeline: The transforms.
    """

    METAINFO = dict(classes=('one', 'two', 'three'))

    def __init__(
        self,
        folder: Path,
        count: int,
        size: tuple[int, int] = SIZE,
        num_boxes: int = NUM_BOXES,
        pipeline: tuple = (),
    ) -> None:
        self.folder, self.count = folder, count
        self.size, self.num_boxes = size, num_boxes
        super().__init__(pipeline=pipeline)

    def load_data_list(self) -> list[dict]:
        random = np.random.default_rng(0)
        return [self._make(index, random) for index in range(self.count)]

    def _make(self, index: int, random: np.random.Generator) -> dict:
        height, width = self.size
        path = self.folder / f'{height}-{index}.jpg'
        if not path.exists():
            cv2.imwrite(
                str(path),
                _picture(np.random.default_rng(index), self.size),
                [cv2.IMWRITE_JPEG_QUALITY, 95],
            )
        sides = random.uniform(0.05, 0.4, (self.num_boxes, 2)) * (width, height)
        low = random.uniform(0, 1, (self.num_boxes, 2)) * ((width, height) - sides)
        boxes = np.concatenate([low, low + sides], axis=1).tolist()
        return dict(
            img_path=str(path),
            img_id=index,
            height=height,
            width=width,
            instances=[
                dict(bbox=box, bbox_label=row % 3, ignore_flag=0) for row, box in enumerate(boxes)
            ],
        )


def _picture(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Random clouds of all sizes, which a JPEG encodes like a photo."""
    height, width = size
    clouds = np.zeros((height, width, 3), np.float32)
    for side in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        coarse = random.standard_normal((height // side + 1, width // side + 1, 3))
        clouds += side**0.3 * cv2.resize(
            coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    clouds *= 45 / clouds.std()
    return (clouds - clouds.mean() + 118).clip(0, 255).astype(np.uint8)


def measure(timer: Timer, quick: bool) -> list[Row]:
    """Whole loaders, the pipeline alone, and its growth."""
    register_all_modules()
    cv2.setNumThreads(0)  # as in a training
    with tempfile.TemporaryDirectory() as folder:
        count = 4 * NUM_REPEATS if quick else 12 * NUM_REPEATS
        data = MadeImages(Path(folder), count)
        bytes_a_pixel = Path(data[0]['img_path']).stat().st_size / math.prod(SIZE)
        size = f'1280x960 JPEGs, {bytes_a_pixel:.2f} bytes a pixel, {NUM_BOXES} boxes'
        return [
            _loaders(timer, data, f'one worker, {size}'),
            _no_repetition(timer, data, size),
            _with_resize(timer, data, FIXED, 'Resize'),
            _with_resize(timer, data, RANDOM, 'RandomResize'),
            *_growth_with_instances(timer, Path(folder), quick),
            *_growth_with_repeats(timer, data, quick),
        ]


def _stock(resize: dict = FIXED) -> Compose:
    return Compose([TRANSFORMS.build(each) for each in _transforms(resize)])


def _invertible(resize: dict = FIXED) -> Callable[[dict], Any]:
    return TRANSFORMS.build(dict(type='lt_mm.InvertiblePipeline', transforms=_transforms(resize)))


def _transforms(resize: dict) -> list[dict]:
    return copy.deepcopy([resize if each is FIXED else each for each in PIPELINE])


def _loaders(timer: Timer, data: MadeImages, note: str) -> Row:
    """As many images of each loader, m times as many as sources."""
    ours, stock = (
        _epochs(data, pipeline, dict(sampler, num_repeats=NUM_REPEATS, seed=0))
        for pipeline, sampler in [
            (_invertible(), dict(type='lt_mm.GroupedRepeatAugSampler', mode='v1')),
            (_stock(), dict(type='mmpretrain.RepeatAugSampler')),
        ]
    )
    found = timer.compare(lambda: next(ours), lambda: next(stock))
    rates = [f'{len(data) / seconds:.0f}' for seconds in (found.a, found.b)]
    return Row(
        f'images/s of a loader, m = {NUM_REPEATS}',
        "RepeatAugSampler's",
        found.faster,
        'x faster',
        '>= 1.8',
        f'{rates[0]} against {rates[1]} images/s; {note}',
    )


def _epochs(data: MadeImages, pipeline: Callable, sampler: dict) -> Iterator[int]:
    """Each step loads an epoch in a worker that stays; gives the number of images."""
    data = copy.copy(data)
    data.pipeline = pipeline
    loader: DataLoader = DataLoader(
        data,
        batch_size=NUM_REPEATS,
        num_workers=1,
        persistent_workers=True,
        collate_fn=pseudo_collate,
        sampler=DATA_SAMPLERS.build(sampler, default_args=dict(dataset=data)),
    )
    while True:
        yield sum(len(batch['inputs']) for batch in loader)


def _no_repetition(timer: Timer, data: MadeImages, note: str) -> Row:
    found = _compare(timer, data, 1, FIXED)
    return Row(
        'InvertiblePipeline, m = 1',
        "stock Compose's",
        found.ratio,
        'x time',
        '<= 1.05',
        f'{_milliseconds(found)}; {note}',
    )


def _with_resize(timer: Timer, data: MadeImages, resize: dict, name: str) -> Row:
    """The pipeline alone, and what it could reach at best.

    Of the stock pipeline's time, what replicas can share is spent once for m of them.
    """
    found = _compare(timer, data, NUM_REPEATS, resize)
    num_shared = 3 if name == 'Resize' else 2
    shares = _shares(data, resize)
    shared = sum(shares[:num_shared])
    bound = 1 / (1 - shared * (1 - 1 / NUM_REPEATS))
    return Row(
        f'InvertiblePipeline with {name}, m = {NUM_REPEATS}',
        "stock Compose's",
        found.faster,
        'x faster',
        '',
        f'{_milliseconds(found)}; shares of the stock time: decoding {shares[0]:.0%}, '
        f'annotations {shares[1]:.0%}, {name} {shares[2]:.0%}, flip {shares[3]:.0%}, '
        f'packing {shares[4]:.0%}; at most {bound:.2f} x where {shared:.0%} is shared',
    )


def _compare(timer: Timer, data: MadeImages, repeats: int, resize: dict) -> Comparison:
    """One source a call, with so many replicas."""
    ours, stock = (
        _sources(data, pipeline, repeats) for pipeline in (_invertible(resize), _stock(resize))
    )
    return timer.compare(lambda: next(ours), lambda: next(stock), rounds=4 * timer.rounds)


def _sources(data: MadeImages, pipeline: Callable, repeats: int) -> Iterator[None]:
    for index in itertools.cycle(range(len(data))):
        for _ in range(repeats):
            pipeline(data.get_data_info(index))
        yield


def _shares(data: MadeImages, resize: dict) -> list[float]:
    """The parts of the time of the stock pipeline that its transforms take."""
    timer, transforms = Timer('cpu'), _stock(resize).transforms
    seconds = np.zeros((len(data), len(transforms)))
    for index in range(len(data)):
        results = [data.get_data_info(index)]
        for place, transform in enumerate(transforms):
            seconds[index, place] = timer.once(lambda: results.append(transform(results[-1])))
    medians = np.median(seconds, axis=0)
    return (medians / medians.sum()).tolist()


def _milliseconds(found: Comparison) -> str:
    return f'{found.a * 1e3:.3g} against {found.b * 1e3:.3g} ms a source'


def _growth_with_instances(timer: Timer, folder: Path, quick: bool) -> list[Row]:
    rows = []
    for count in (1, 10, 100) if quick else (1, 3, 10, 30, 100, 300, 1000):
        data = MadeImages(folder, 4, SMALL_SIZE, count)
        for name, pipeline in (('InvertiblePipeline', _invertible()), ('stock Compose', _stock())):
            source = _sources(data, pipeline, NUM_REPEATS)
            rows.append(
                _point(
                    timer,
                    source,
                    NUM_REPEATS,
                    name,
                    count,
                    f'ms against instances (320x240, m = {NUM_REPEATS})',
                )
            )
    return rows


def _growth_with_repeats(timer: Timer, data: MadeImages, quick: bool) -> list[Row]:
    rows = []
    for repeats in (1, 4) if quick else (1, 2, 4, 8, 16, 32):
        for name, pipeline in (('InvertiblePipeline', _invertible()), ('stock Compose', _stock())):
            source = _sources(data, pipeline, repeats)
            rows.append(_point(timer, source, repeats, name, repeats, 'ms against m (1280x960)'))
    return rows


def _point(timer: Timer, source: Iterator[None], images: int, what: str, x: int, curve: str) -> Row:
    milliseconds = 1e3 * timer.seconds(lambda: next(source)) / images
    return Row(what, '', milliseconds, 'ms an image', curve=curve, x=x)
