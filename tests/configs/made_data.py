"""Small made data in the place of the data sets that the configs name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmdet.registry import DATASETS as MMDET_DATASETS
from mmengine.config import Config, ConfigDict

from lt_mm.datasets.converters import write_shapes_dataset

IMAGE_SIZE = (96, 128)
# Sizes in pixels of pipelines and mixers, below which a network still has a feature map.
_SIZE_KEYS = ('scale', 'scales', 'img_scale', 'crop_size', 'size', 'border')
_SHRINK, _SMALLEST = 8, 64


def write_pictures(root: Path) -> None:
    """Two folders of six images, for classifiers."""
    rng = np.random.default_rng(0)
    for label in ('0', '1'):
        (root / label).mkdir(parents=True)
        for number in range(6):
            image = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
            cv2.imwrite(str(root / label / f'{number}.png'), image)


def write_shapes(root: Path) -> None:
    """Images with boxes and masks, for detectors."""
    write_shapes_dataset(root, num_train=8, num_val=2, image_size=IMAGE_SIZE, seed=0)


def use_made_data(cfg: Config, shapes: Path, pictures: Path, work_dir: Path) -> None:
    """Points the training data of a config at the made data, in place."""
    dataset = cfg.train_dataloader.dataset
    parts = [dataset[name] for name in ('labelled', 'unlabelled') if name in dataset]
    for part in parts or [dataset]:
        if cfg.default_scope == 'mmpretrain':
            _use_pictures(part, pictures)
        else:
            _use_shapes(part, shapes, work_dir)


def _use_shapes(dataset: ConfigDict, shapes: Path, work_dir: Path) -> None:
    whole = dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pop('indices', None)
    classes = dataset.get('metainfo', {}).get('classes')
    classes = classes or MMDET_DATASETS.get(dataset.type).METAINFO['classes']
    dataset.update(
        data_root='',
        ann_file=str(_with_classes(shapes, classes, work_dir)),
        data_prefix=dict(img=str(shapes / 'train') + '/'),
    )
    _shrink_sizes(whole)


def _use_pictures(dataset: ConfigDict, pictures: Path) -> None:
    loads_images = dataset.type in ('CustomDataset', 'ImageNet')
    if not loads_images:  # CIFAR's pickles hold arrays
        steps = dataset.pipeline
        if 'transforms' in steps[0]:
            steps = steps[0].transforms
        steps.insert(0, ConfigDict(type='LoadImageFromFile'))
    pipeline = dataset.pipeline
    dataset.clear()
    dataset.update(type='CustomDataset', data_root=str(pictures), pipeline=pipeline)


def _with_classes(shapes: Path, classes: Sequence[str], work_dir: Path) -> Path:
    """The annotations, with the classes of a config instead of the shapes' names."""
    annotations = json.loads((shapes / 'annotations' / 'train.json').read_text())
    annotations['categories'] = [
        dict(id=number, name=name) for number, name in enumerate(classes, start=1)
    ]
    for annotation in annotations['annotations']:
        annotation['category_id'] = (annotation['category_id'] - 1) % len(classes) + 1
    path = work_dir / 'train.json'
    path.write_text(json.dumps(annotations))
    return path


def _shrink_sizes(node: Any) -> None:
    """Makes the sizes of a pipeline small, wherever it stands below a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _SIZE_KEYS:
                node[key] = _small(value)
            else:
                _shrink_sizes(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _shrink_sizes(value)


def _small(size: Any) -> Any:
    if isinstance(size, (list, tuple)):
        return type(size)(_small(part) for part in size)
    if not isinstance(size, int) or size == 300:  # SSD300 has anchors for 300 pixels
        return size
    if size < 0:  # the border of a mosaic, half its size outwards
        return -_small(-2 * size) // 2
    return max(size // _SHRINK, _SMALLEST)
