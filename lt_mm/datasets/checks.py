"""What is wrong with a data set as a whole: an error before training.

:func:`check_annotated` runs when a sampler of this package is built, with the stock
tools too, and in ``tools/train.py`` with every sampler. :func:`explained` adds to the errors
of the stock data sets which file is wrong, and what is wrong with it; ``tools/train.py`` uses
it. What an annotation file has to be is said in :mod:`lt_mm.datasets.coco_file`.
"""

import os
import os.path as osp
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS as DETECTION_DATASETS
from mmengine.dataset import BaseDataset

from lt_mm.datasets.coco_file import CLASSES_HINT, briefly, check_coco_file, check_image_ids
from lt_mm.datasets.reporting import DataSetError, warn
from lt_mm.registry import class_of


def check_annotated(dataset: Any) -> None:
    """Makes sure that a detection data set has something to detect.

    Args:
        dataset: The data set; it may wrap others.

    Raises:
        DataSetError: If no image has an instance that counts, or as in
            :func:`check_annotation_files`.
    """
    check_annotation_files(dataset)
    for each in innermost_datasets(dataset):
        classes = each.metainfo.get('classes') or ()
        if isinstance(classes, str):
            raise DataSetError(
                f'the classes of {type(each).__name__} are the text {classes!r}, expected a '
                f'tuple of names; {CLASSES_HINT}'
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
                f'{briefly(classes)} that is not a crowd; {CLASSES_HINT}'
            )


def check_annotation_files(dataset: Any) -> None:
    """Makes sure that detection data sets load what their annotation files mean.

    A stock ``CocoDataset`` takes one image for another if their ids are equal, and gives
    labels in the order of the file, whatever the order of the classes. Its file is read
    again for this check, which takes a fraction of the time that the data set took. What the
    data set leaves out, and classes that the file lacks, are logged. Of a subclass with a parser of
    its own (LVIS), only the ids of the images are checked. Images that the list of an
    ``XMLDataset`` (VOC) names more than once are logged.

    Args:
        dataset: The data set; it may wrap others.

    Raises:
        DataSetError: If the data set loads something else; the message names the place in
            the file.
    """
    for each in innermost_datasets(dataset):
        classes = each.metainfo.get('classes') or ()
        is_file = isinstance(each.ann_file, str) and osp.isfile(each.ann_file)
        if _reads_coco(type(each)) and is_file:
            filter_cfg = {} if each.test_mode else each.filter_cfg or {}
            for note in check_coco_file(each.ann_file, classes, filter_cfg):
                warn(note)
        elif isinstance(each, CocoDataset) and is_file:  # LVIS, and parsers of their own
            check_image_ids(each.ann_file)
        elif isinstance(each, XMLDataset):
            _warn_of_repeated(each)
        found = getattr(each, 'cat_ids', None)
        if found is not None and 0 < len(found) < len(classes):
            warn(
                f'{each.ann_file} has {len(found)} of the {len(classes)} classes '
                f'{briefly(classes)}: the others are never seen; {CLASSES_HINT}'
            )


def _warn_of_repeated(dataset: XMLDataset) -> None:
    """Logs which images a list names again: each time is a source of its own."""
    counts = Counter(dataset.get_data_info(index)['img_id'] for index in range(len(dataset)))
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        warn(
            f'{dataset.ann_file} lists {len(repeated)} images more than once, and each time counts '
            f'as another image; the first is {repeated[0]!r}'
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
def explained(dataset_cfg: Mapping[str, Any], loader: str = 'train_dataloader') -> Iterator[None]:
    """Explains the errors raised while a data set is built, if its json is at fault.

    Args:
        dataset_cfg: The data set's config.
        loader: The key in the config of what loads from it.

    Raises:
        DataSetError: Instead of any error, if there is an explanation; and before anything is
            built, if an annotation file is a pipe or a device, which might never end.
    """
    configs = innermost_configs(dataset_cfg)
    for each in configs:
        path = _ann_file_of(each)
        if osp.exists(path) and not osp.isfile(path) and not osp.isdir(path):
            raise DataSetError(
                f'{loader}.dataset: {path} is not a regular file, so reading it may never '
                'end; expected an annotation file. Check data_root and ann_file'
            )
    try:
        yield
    except DataSetError as error:
        if loader == 'train_dataloader':
            raise
        raise DataSetError(str(error).replace('train_dataloader', loader)) from error
    except Exception as error:
        for each in configs:
            try:
                _check_config(each)
            except DataSetError as fault:
                text = str(fault).replace('train_dataloader', loader)
                raise DataSetError(f'{loader}.dataset: {text}') from error
        raise


def innermost_configs(cfg: Any) -> list[Any]:
    """The configs of the data sets that load annotations, inside wrappers and concatenations."""
    parts = parts_of(cfg)
    if parts:
        return [inner for part in parts for inner in innermost_configs(part)]
    return [cfg] if isinstance(cfg, Mapping) else []


def parts_of(cfg: Any) -> list[Any]:
    """The configs that stand directly in that of a wrapper or a concatenation; else none."""
    if not isinstance(cfg, Mapping):
        return []
    for key in ('labelled', 'dataset', 'datasets'):  # nobody annotated an unlabelled part
        if key in cfg:
            return list(cfg[key]) if isinstance(cfg[key], (list, tuple)) else [cfg[key]]
    return []


def _ann_file_of(cfg: Mapping[str, Any]) -> str:
    """The path of a data set's annotation file; empty where it has not a single one."""
    root, name = cfg.get('data_root') or '', cfg.get('ann_file') or ''
    return osp.join(root, name) if isinstance(name, str) and isinstance(root, str) else ''


def _check_config(cfg: Mapping[str, Any]) -> None:
    """Checks the annotation file of a data set's config, if it is a COCO json."""
    path, found = _ann_file_of(cfg), class_of(cfg.get('type'), DETECTION_DATASETS)
    metainfo = cfg.get('metainfo') or {}
    filter_cfg = {} if cfg.get('test_mode') else cfg.get('filter_cfg') or {}
    if not (_reads_coco(found) and osp.isfile(path) and os.access(path, os.R_OK)):
        return
    if isinstance(metainfo, Mapping) and isinstance(filter_cfg, Mapping):
        classes = metainfo.get('classes') or found.METAINFO.get('classes', ())
        check_coco_file(path, classes, filter_cfg)


def _reads_coco(kind: Any) -> bool:
    """Whether a class of data sets reads its annotation file as ``CocoDataset`` does."""
    methods = ('load_data_list', 'parse_data_info')
    return (
        isinstance(kind, type)
        and issubclass(kind, CocoDataset)
        and all(getattr(kind, name) is getattr(CocoDataset, name) for name in methods)
    )
