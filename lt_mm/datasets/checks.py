"""What is wrong with a data set as a whole: an error before training.

:func:`check_annotated` runs when a sampler of this package is built, with the stock
tools too. :func:`explained` adds to the errors of the stock data sets which file is wrong,
and what is wrong with it; ``tools/train.py`` uses it.
"""

import json
import os
import os.path as osp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mmdet.registry import DATASETS as DETECTION_DATASETS
from mmengine.dataset import BaseDataset

from lt_mm.datasets.reporting import warn

_KEYS = ('images', 'annotations', 'categories')
_IMAGE_KEYS = ('id', 'file_name', 'height', 'width')
_ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')
_CLASSES_HINT = (
    'set the names that the annotation file uses: train_dataloader.dataset.metainfo'
    "=dict(classes=('name', ...)), with a comma after a single one, and num_classes of "
    'the head to their number'
)


class DataSetError(ValueError):
    """A data set cannot be trained on."""


def check_annotated(dataset: Any) -> None:
    """Makes sure that a detection data set has something to detect.

    A stock ``CocoDataset`` leaves out every annotation, without a warning, if its classes
    are not those of the annotation file. If only some of its classes are found, the labels
    of those after a missing one are shifted; this is logged.

    Args:
        dataset: The data set; it may wrap others.

    Raises:
        DataSetError: If no image has an instance that counts.
    """
    for each in innermost_datasets(dataset):
        classes = each.metainfo.get('classes') or ()
        if isinstance(classes, str):
            raise DataSetError(
                f'the classes of {type(each).__name__} are the text {classes!r}, expected a '
                f'tuple of names; {_CLASSES_HINT}'
            )
        found = getattr(each, 'cat_ids', None)
        if found is not None and 0 < len(found) < len(classes):
            warn(
                f'{each.ann_file} has {len(found)} of the {len(classes)} classes '
                f'{_briefly(classes)}: labels count those that it has, so they are not '
                f'the places in this list; {_CLASSES_HINT}'
            )
        count = len(each)
        if (
            count
            and 'instances' in each.get_data_info(0)
            and not any(_is_annotated(each.get_data_info(index)) for index in range(count))
        ):
            raise DataSetError(
                f'none of the {count} images of {type(each).__name__} '
                f'({each.ann_file or "no ann_file"}) has an instance of its classes '
                f'{_briefly(classes)} that is not a crowd; {_CLASSES_HINT}'
            )


def innermost_datasets(dataset: Any) -> list[BaseDataset]:
    """The data sets that load annotations, inside wrappers and concatenations."""
    if hasattr(dataset, 'labelled'):
        return innermost_datasets(dataset.labelled)  # nobody annotated the others
    parts = getattr(dataset, 'datasets', None)
    if parts is None and hasattr(dataset, 'dataset'):
        parts = [dataset.dataset]
    if parts is not None:
        return [inner for part in parts for inner in innermost_datasets(part)]
    return [dataset] if isinstance(dataset, BaseDataset) else []


def _is_annotated(data_info: dict) -> bool:
    return any(not instance.get('ignore_flag', 0) for instance in data_info['instances'])


@contextmanager
def explained(dataset_cfg: dict) -> Iterator[None]:
    """Explains the errors raised while a data set is built, if its json is at fault.

    Args:
        dataset_cfg: The data set's config.

    Raises:
        DataSetError: Instead of any error, if there is an explanation.
    """
    try:
        yield
    except Exception as error:
        for each in _innermost_configs(dataset_cfg):
            fault = _fault_of(each)
            if fault is not None:
                raise DataSetError(f'train_dataloader.dataset: {fault}') from error
        raise


def _innermost_configs(cfg: dict) -> list[dict]:
    parts = cfg.get('datasets', [cfg['dataset']] if 'dataset' in cfg else None)
    if parts is None:
        return [cfg]
    return [inner for part in parts for inner in _innermost_configs(part)]


def _fault_of(cfg: dict) -> str | None:
    """What is wrong with the annotation file of a data set's config, if it is a json."""
    path = osp.join(cfg.get('data_root') or '', cfg.get('ann_file') or '')
    if not path.endswith('.json') or not osp.isfile(path):
        return None
    stock = getattr(DETECTION_DATASETS.get(cfg['type']), 'METAINFO', {})
    classes = (cfg.get('metainfo') or {}).get('classes') or stock.get('classes', ())
    fault = _file_fault(path, classes, cfg.get('filter_cfg') or {})
    return None if fault is None else f'{path} {fault}'


def _file_fault(path: str, classes: Sequence[str], filter_cfg: Mapping[str, Any]) -> str | None:
    """Why mmdet's ``CocoDataset`` cannot load a file, or loads nothing from it.

    Args:
        path: The annotation file.
        classes: Names of the classes that are to be trained on.
        filter_cfg: The data set's, for example ``dict(filter_empty_gt=True, min_size=32)``.

    Returns:
        What is wrong, to be read after the path, and what to do; None if nothing is found.
    """
    try:
        with open(path, encoding='utf-8') as file:
            coco = json.load(file)
    except ValueError as error:  # the bytes are not text, or the text is not json
        return (
            f'is not complete, valid json ({error}); it has {os.path.getsize(path)} bytes. '
            'Download or write it again'
        )
    if not isinstance(coco, dict):
        return f'holds a {type(coco).__name__}; expected COCO json, an object with keys {_KEYS}'
    for key in _KEYS:
        if not isinstance(coco.get(key), list):
            return (
                f'has no list {key!r}, but the keys {tuple(coco)}; expected COCO json, an object '
                f'with keys {_KEYS}. Check train_dataloader.dataset.ann_file'
            )
    return (
        _incomplete_entry('images', coco['images'], _IMAGE_KEYS)
        or _incomplete_entry('annotations', coco['annotations'], _ANNOTATION_KEYS)
        or _repeated_id(coco['annotations'])
        or _nothing_to_train(coco, classes, filter_cfg)
    )


def _incomplete_entry(name: str, entries: list[Any], keys: Sequence[str]) -> str | None:
    for row, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            return f'has {name}[{row}] without {", ".join(missing)}; expected {keys}'
        box = entry.get('bbox', (0,) * 4)
        if not (
            isinstance(box, (list, tuple))
            and len(box) == 4
            and all(isinstance(number, (int, float)) for number in box)
        ):
            return (
                f'has {name}[{row}] (id {entry["id"]}) with bbox {box!r}; expected four '
                'numbers, [x, y, width, height]'
            )
    return None


def _repeated_id(annotations: list[dict[str, Any]]) -> str | None:
    seen = set()
    for row, annotation in enumerate(annotations):
        if annotation['id'] in seen:
            return (
                f'has annotations[{row}] with the id {annotation["id"]} of another one; '
                'expected ids that are all different'
            )
        seen.add(annotation['id'])
    return None


def _nothing_to_train(
    coco: dict[str, Any], classes: Sequence[str], filter_cfg: Mapping[str, Any]
) -> str | None:
    names = [category['name'] for category in coco['categories']]
    if isinstance(classes, str):
        return (
            f'is to be read for the text {classes!r}; expected a tuple of names, with a comma '
            f'after a single one: classes=({classes!r}, )'
        )
    if not set(names) & set(classes):
        return (
            f'has none of the classes {_briefly(classes)}; its categories are '
            f'{_briefly(names)}. Set train_dataloader.dataset.metainfo='
            'dict(classes=(...)), and num_classes of the head to their number'
        )
    kept = {category['id'] for category in coco['categories'] if category['name'] in classes}
    annotated = {each['image_id'] for each in coco['annotations'] if each['category_id'] in kept}
    min_size = filter_cfg.get('min_size', 0)
    large = [image for image in coco['images'] if min(image['width'], image['height']) >= min_size]
    if not large or (
        filter_cfg.get('filter_empty_gt') and not (annotated & {image['id'] for image in large})
    ):
        return (
            f'has no image that is left: of its {len(coco["images"])} images {len(large)} are at '
            f'least {min_size} pixels wide and high, and {len(annotated)} have annotations of the '
            f'classes {_briefly(classes)}. Check train_dataloader.dataset.filter_cfg='
            f'{dict(filter_cfg)}'
        )
    return None


def _briefly(names: Sequence[str]) -> str:
    """At most five of the names, for a message."""
    shown = ', '.join(map(repr, names[:5]))
    return f'({shown}{", ..." if len(names) > 5 else ""})'
