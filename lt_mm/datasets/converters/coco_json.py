"""What the writers of data sets share: COCO annotations, and json files that are written last.

Coordinates follow MMDetection's edge convention: a box extends from the left edge of its first
pixel to the right edge of its last one, so a mask of one pixel has a box of width 1.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

SPLITS = ('train', 'val')


@dataclass(frozen=True)
class CocoSplit:
    """One written split: where it lies and what it holds.

    Attributes:
        ann_file: COCO json (`ann_file` of mmdet's `CocoDataset`).
        image_dir: Folder that the json's `file_name` is relative to (`data_prefix['img']`).
        num_images: Images in the split, including those without an object.
        num_instances: Annotated instances.
        num_empty: Images without an object.
    """

    ann_file: Path
    image_dir: Path
    num_images: int
    num_instances: int
    num_empty: int


def _ann_file_of(out_dir: Path, split: str) -> Path:
    return out_dir / 'annotations' / f'{split}.json'


def mask_to_annotation(mask: np.ndarray, image_id: int, category_id: int) -> dict[str, Any]:
    """Describe one instance by its mask, without the annotation's `id`.

    The mask is written as compressed RLE, which is exact (a polygon cannot express a hole).
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
    return pixels_to_annotation(np.flatnonzero(mask.T), mask.shape, image_id, category_id)


def pixels_by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The pixels of each label, in one pass over an image, however many labels there are.

    Args:
        labels: (H, W) integers.

    Returns:
        By label, in ascending order, the ascending numbers of its pixels, counted column by
        column.
    """
    flat = labels.T.ravel()
    order = np.argsort(flat, kind='stable')
    values, starts = np.unique(flat[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:])))


def pixels_to_annotation(
    pixels: np.ndarray, shape: tuple[int, ...], image_id: int, category_id: int
) -> dict[str, Any]:
    """As :func:`mask_to_annotation`, in a time that depends on the instance alone.

    Args:
        pixels: Ascending numbers of the visible pixels, counted column by column.
        shape: (H, W) of the image.
        image_id: Id of the image.
        category_id: Id of the category.

    Raises:
        ValueError: If there is no pixel.
    """
    height, width = shape
    if len(pixels) == 0:
        raise ValueError(
            f'the mask of an instance in image {image_id} has no pixel set; '
            'leave instances that are not visible out of the annotations'
        )
    breaks = np.flatnonzero(np.diff(pixels) > 1)
    begins, ends = pixels[[0, *(breaks + 1)]], pixels[[*breaks, -1]] + 1
    # Where it changes from pixels that are not set to pixels that are, and back.
    changes = np.stack([begins, ends], axis=1).ravel()
    runs = np.diff([0, *changes, height * width])
    counts = runs[: -1 if runs[-1] == 0 else None].tolist()
    rle = mask_utils.frPyObjects(dict(size=[height, width], counts=counts), height, width)
    xs, ys = pixels // height, pixels % height
    x, y = int(xs[0]), int(ys.min())
    return dict(
        image_id=image_id,
        category_id=category_id,
        bbox=[float(x), float(y), float(xs[-1] + 1 - x), float(ys.max() + 1 - y)],
        area=float(len(pixels)),
        segmentation=dict(size=[height, width], counts=rle['counts'].decode('ascii')),
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

    The ids of annotations begin at 1, since pycocotools' evaluation reads id 0 as "no match".
    Those of categories begin at 1, in the order of `classes`.

    Args:
        out_dir: Root of the data set.
        split: Name of the split.
        image_dir: Folder of the images.
        info: The json's `info`; has to name its `generator`.
        images: COCO image entries.
        annotations: COCO annotations without `id`, such as :func:`mask_to_annotation` gives.
        classes: Names of the categories.

    Returns:
        What was written.
    """
    ann_file = _ann_file_of(out_dir, split)
    coco = dict(
        info=info,
        images=images,
        annotations=[dict(annotation, id=i) for i, annotation in enumerate(annotations, start=1)],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, start=1)],
    )
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    # At any time there is the old file, no file, or the whole new one, never a part of it.
    partial = ann_file.with_name(f'{ann_file.name}.{os.getpid()}.part')
    partial.write_text(json.dumps(coco), encoding='utf-8')
    os.replace(partial, ann_file)
    with_objects = {annotation['image_id'] for annotation in annotations}
    return CocoSplit(
        ann_file, image_dir, len(images), len(annotations), len(images) - len(with_objects)
    )


def _generator_of(ann_file: Path) -> Any:
    """The `info.generator` of a COCO json; None if it is not COCO json."""
    try:
        return json.loads(ann_file.read_text(encoding='utf-8'))['info'].get('generator')
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def remove_stale_json(out_dir: Path, generator: str, splits: Sequence[str] = SPLITS) -> None:
    """Remove the json files of an earlier run, before its images are overwritten.

    Args:
        out_dir: Root of the data set.
        generator: What the json files name as their `info.generator`.
        splits: Names of the splits.

    Raises:
        FileExistsError: If a file in their place was written by something else; it is kept.
    """
    ann_files = [_ann_file_of(out_dir, split) for split in splits]
    ann_files = [path for path in ann_files if path.exists()]
    for path in ann_files:
        found = _generator_of(path)
        if found != generator:
            raise FileExistsError(
                f'{path} was not written by {generator} (its info.generator is {found!r}) and is '
                'not overwritten; choose another output folder or move the file away'
            )
    for path in ann_files:
        path.unlink()
