"""What the data set writers share: COCO annotations and files written last.

Coordinates follow MMDetection's edge convention: a box reaches from the left edge of its first
pixel to the right edge of its last one, so a mask of one pixel has a box of width 1.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

SPLITS = ('train', 'val')

_KEYS = ('images', 'annotations', 'categories')
_IMAGE_KEYS = ('id', 'file_name', 'height', 'width')
_ANNOTATION_KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area')


@dataclass(frozen=True)
class CocoSplit:
    """One written split: where it lies and what it holds.

    Attributes:
        ann_file: COCO json (`ann_file` of mmdet's `CocoDataset`).
        image_dir: Folder that the json's `file_name` is relative to (`data_prefix['img']`).
        num_images: Images in the split, those without an object included.
        num_instances: Annotated instances.
        num_empty: Images without an object.
    """

    ann_file: Path
    image_dir: Path
    num_images: int
    num_instances: int
    num_empty: int


def ann_file_of(out_dir: Path, split: str) -> Path:
    """Where the json of a split lies below `out_dir`."""
    return out_dir / 'annotations' / f'{split}.json'


def mask_to_annotation(mask: np.ndarray, image_id: int, category_id: int) -> dict[str, Any]:
    """Describe one instance by its mask, without the annotation's `id`.

    The mask is kept as compressed RLE, which is exact (a polygon cannot express a hole).
    MMDetection reads it with `LoadAnnotations(with_mask=True)`; with `poly2mask=False`, which
    is for polygons only, it marks every such instance as ignored.

    Args:
        mask: (H, W) bool, the visible pixels of the instance.
        image_id: Id of the image.
        category_id: Id of the category.

    Returns:
        The annotation; `bbox` is (x, y, w, h) in pixels of the image, tight around the mask.

    Raises:
        ValueError: If no pixel of the mask is set.
    """
    ys, xs = np.nonzero(mask)
    if len(xs) == 0:
        raise ValueError(
            f'the mask of an instance in image {image_id} has no pixel set; '
            'leave instances that are not visible out of the annotations'
        )
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    x, y = int(xs.min()), int(ys.min())
    width, height = int(xs.max()) - x + 1, int(ys.max()) - y + 1
    return dict(
        image_id=image_id,
        category_id=category_id,
        bbox=[float(x), float(y), float(width), float(height)],
        area=float(len(xs)),
        segmentation=dict(size=[int(n) for n in rle['size']], counts=rle['counts'].decode('ascii')),
        iscrowd=0,
    )


def write_split(
    out_dir: Path,
    split: str,
    image_dir: Path,
    info: dict[str, Any],
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    classes: Sequence[str],
) -> CocoSplit:
    """Write the json of one split; call it once the images are on disk.

    Annotations get ids from 1: pycocotools' evaluation takes id 0 for "no match". Categories get
    ids from 1, in the order of `classes`.

    Args:
        out_dir: Root of the data set.
        split: Name of the split.
        image_dir: Folder of the images.
        info: The json's `info`; has to name its `generator`.
        images: COCO image entries.
        annotations: Results of :func:`mask_to_annotation`.
        classes: Names of the categories.

    Returns:
        What was written.
    """
    ann_file = ann_file_of(out_dir, split)
    coco = dict(
        info=info,
        images=images,
        annotations=[dict(annotation, id=i) for i, annotation in enumerate(annotations, start=1)],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
    )
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    # A reader sees the old file, none, or the whole new one; never a part.
    partial = ann_file.with_name(f'{ann_file.name}.{os.getpid()}.part')
    partial.write_text(json.dumps(coco), encoding='utf-8')
    os.replace(partial, ann_file)
    with_objects = {annotation['image_id'] for annotation in annotations}
    return CocoSplit(
        ann_file, image_dir, len(images), len(annotations), len(images) - len(with_objects)
    )


def read_info(ann_file: Path) -> dict[str, Any]:
    """The `info` of a COCO json; empty where there is no such file or it is no COCO json."""
    try:
        coco = json.loads(ann_file.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    info = coco.get('info') if isinstance(coco, dict) else None
    return info if isinstance(info, dict) else {}


def remove_stale_json(out_dir: Path, generator: str) -> None:
    """Remove the json files of an earlier run, before its images are overwritten.

    Raises:
        FileExistsError: If a file in their place was written by something else; it is kept.
    """
    ann_files = [ann_file_of(out_dir, split) for split in SPLITS]
    ann_files = [path for path in ann_files if path.exists()]
    for path in ann_files:
        found = read_info(path).get('generator')
        if found != generator:
            raise FileExistsError(
                f'{path} was not written by {generator} (its info.generator is {found!r}) and is '
                'not overwritten; choose another output folder or move the file away'
            )
    for path in ann_files:
        path.unlink()


def find_fault(path: str, classes: Sequence[str], filter_cfg: Mapping[str, Any] = {}) -> str | None:
    """Find out why mmdet's `CocoDataset` cannot load a file, or loads nothing from it.

    Args:
        path: The annotation file.
        classes: Names of the classes that are to be trained on.
        filter_cfg: The data set's, as `dict(filter_empty_gt=True, min_size=32)`.

    Returns:
        What is wrong, to be read after the path, with the hint; None where no fault is found.
    """
    try:
        with open(path, encoding='utf-8') as file:
            coco = json.load(file)
    except ValueError as error:  # bytes that are no text, or text that is no json
        return (
            f'is no json, or a part of one ({error}); it has {os.path.getsize(path)} bytes. '
            'Download or write it again'
        )
    if not isinstance(coco, dict):
        return (
            f'holds a {type(coco).__name__}; expected an object with the keys {_KEYS}, as '
            'COCO json has it'
        )
    for key in _KEYS:
        if not isinstance(coco.get(key), list):
            return (
                f'has no list {key!r}, but the keys {tuple(coco)}; expected {_KEYS}, as COCO '
                'json has it. Check train_dataloader.dataset.ann_file'
            )
    return (
        _incomplete('images', coco['images'], _IMAGE_KEYS)
        or _incomplete('annotations', coco['annotations'], _ANNOTATION_KEYS)
        or _repeated_ids(coco['annotations'])
        or _nothing_to_train(coco, classes, filter_cfg)
    )


def _incomplete(name: str, entries: list[Any], keys: Sequence[str]) -> str | None:
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


def _repeated_ids(annotations: list[dict[str, Any]]) -> str | None:
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
            f'has none of the classes {briefly(classes)}; its categories are '
            f'{briefly(names)}. Set train_dataloader.dataset.metainfo='
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
            f'has no image that is left: of its {len(coco["images"])} images {len(large)} are '
            f'{min_size} pixels wide and high, and {len(annotated)} have annotations of the '
            f'classes {briefly(classes)}. Check train_dataloader.dataset.filter_cfg='
            f'{dict(filter_cfg)}'
        )
    return None


def briefly(names: Sequence[str]) -> str:
    """At most five of the names, for a message."""
    shown = ', '.join(map(repr, names[:5]))
    return f'({shown}{", ..." if len(names) > 5 else ""})'
