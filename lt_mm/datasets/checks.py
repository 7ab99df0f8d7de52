"""What is wrong with a data set as a whole: an error before training.

:func:`check_annotated` runs when a sampler of this package is built, with the stock
tools too. :func:`explained` makes the errors that the stock data sets raise say which
file is wrong and in what; ``tools/train.py`` uses it.
"""

import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.registry import DATASETS as DETECTION_DATASETS
from mmengine.dataset import BaseDataset

from lt_mm.datasets.converters.coco_json import briefly, find_fault
from lt_mm.datasets.reporting import warn

_CLASSES_HINT = (
    'set the names that stand in the annotation file: train_dataloader.dataset.metainfo'
    "=dict(classes=('name', ...)), with a comma after a single one, and num_classes of "
    'the head to their number'
)


class DataSetError(ValueError):
    """A data set cannot be trained on."""


def check_annotated(dataset: Any) -> None:
    """Makes sure that a detection data set has something to detect.

    A stock ``CocoDataset`` whose classes are not those of its annotation file leaves
    out every annotation without a word. Where only some of its classes are found, the
    labels of those after a missing one are shifted; this is logged.

    Args:
        dataset: Also one that wraps others.

    Raises:
        DataSetError: If no image has an instance that counts.
    """
    for each in innermost_datasets(dataset):
        classes = each.metainfo.get('classes') or ()
        if isinstance(classes, str):
            raise DataSetError(
                f'the classes of {type(each).__name__} are the text '
                f'{classes!r}, expected a tuple of names; '
                f'{_CLASSES_HINT}'
            )
        _warn_of_missing_classes(each, classes)
        count = len(each)
        if (
            count
            and 'instances' in each.get_data_info(0)
            and not any(_is_annotated(each.get_data_info(index)) for index in range(count))
        ):
            raise DataSetError(
                f'none of the {count} images of {type(each).__name__} '
                f'({each.ann_file or "no ann_file"}) has an instance of its classes '
                f'{briefly(classes)} that is not a crowd; {_CLASSES_HINT}'
            )


def innermost_datasets(dataset: Any) -> list[BaseDataset]:
    """The data sets that load annotations, inside wrappers and concatenations."""
    parts = getattr(dataset, 'datasets', None)
    if parts is None and hasattr(dataset, 'dataset'):
        parts = [dataset.dataset]
    if parts is not None:
        return [inner for part in parts for inner in innermost_datasets(part)]
    return [dataset] if isinstance(dataset, BaseDataset) else []


def _is_annotated(data_info: dict) -> bool:
    return any(not instance.get('ignore_flag', 0) for instance in data_info['instances'])


def _warn_of_missing_classes(dataset: BaseDataset, classes: Any) -> None:
    found = getattr(dataset, 'cat_ids', None)
    if found is not None and 0 < len(found) < len(classes):
        warn(
            f'{dataset.ann_file} has {len(found)} of the {len(classes)} classes '
            f'{briefly(classes)}: labels count those that it has, so they are not '
            f'the places in this list; {_CLASSES_HINT}'
        )


@contextmanager
def explained(dataset_cfg: dict) -> Iterator[None]:
    """Explains the errors raised while a data set is built, where its json is at fault.

    Args:
        dataset_cfg: The data set's config.

    Raises:
        DataSetError: In the place of any error, if there is an explanation.
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
    path = osp.join(cfg.get('data_root') or '', cfg.get('ann_file') or '')
    if not path.endswith('.json') or not osp.isfile(path):
        return None
    cls = DETECTION_DATASETS.get(cfg['type'])
    classes = (cfg.get('metainfo') or {}).get('classes') or getattr(cls, 'METAINFO', {}).get(
        'classes', ()
    )
    fault = find_fault(path, classes, cfg.get('filter_cfg') or {})
    return None if fault is None else f'{path} {fault}'
