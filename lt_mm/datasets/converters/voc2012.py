"""The segmentation part of PASCAL VOC 2012 as COCO json with instance masks.

VOCdevkit/VOC2012 has `JPEGImages/NAME.jpg`, `ImageSets/Segmentation/{train,val}.txt` (one
name per line), and two palette PNGs for each of these names. In `SegmentationClass` a pixel
is 0 for the background, a class from 1 to 20, or 255 for void (contours and parts that are
not labelled). In `SegmentationObject` it is 0, the number of an object, or 255.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lt_mm.datasets.converters.coco_json import (
    SPLITS,
    CocoSplit,
    pixels_by_label,
    pixels_to_annotation,
    remove_stale_json,
    write_split,
)
from lt_mm.datasets.converters.source_files import (
    SourceFiles,
    decode_image,
    open_source,
    read_labels,
)

GENERATOR = 'lt_mm.datasets.converters.voc2012'
_CLASSES = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor
"""
VOC_CLASSES = tuple(_CLASSES.split())
VOID = 255
INSTANCES = ('components', 'object')

_PARTS = (
    'ImageSets/Segmentation/*.txt',
    'JPEGImages/*.jpg',
    'SegmentationClass/*.png',
    'SegmentationObject/*.png',
)
_PATTERNS = [depth + part for depth in ('', '*/', '*/*/') for part in _PARTS]
_NAME = re.compile(r'\w[\w-]*')
_EXPECTED = (
    'VOCtrainval_11-May-2012.tar, not compressed (about 2 GB), or the folder '
    'VOC2012 unpacked from it'
)


@dataclass(frozen=True)
class VocSplit(CocoSplit):
    """One written split.

    Attributes:
        num_dropped: Instances left out because they are smaller than `min_area`.
    """

    num_dropped: int


def convert_voc2012(
    source: str | Path, out_dir: str | Path, instances: str = 'components', min_area: int = 16
) -> dict[str, VocSplit]:
    """Write `images/*.jpg`, `annotations/train.json` and `annotations/val.json`.

    The splits are the official ones (1464 and 1449 images). Image files are copied unchanged; image
    ids number the sorted names from 1, over both splits; categories are the 20 classes in the order
    of VOC, from 1. Void pixels belong to no instance. The json files are removed first and written
    last; their `info` has the arguments and `num_dropped`.

    Args:
        source: The tar, or the folder VOC2012 (or one or two levels above it).
        out_dir: Folder to write to; made if it does not exist.
        instances: 'components': the connected components of each class mask (see
            :func:`connected_components`), in the order of the classes. Objects that touch
            are one instance, and an object that another one cuts in two is two. 'object':
            the true instances, for comparison, in the order of their numbers.
        min_area: Instances of fewer pixels are left out, and counted. By default a cell of
            the finest feature map of an FPN, 4 x 4 pixels.

    Returns:
        What was written, for the splits 'train' and 'val'.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If `source` is neither a tar nor a folder, is damaged, lacks a list, an
            image or a mask, has an entry or a listed name that points out of it, or a mask
            that does not fit; or if an argument is not one of the above.
        FileExistsError: If `out_dir` holds annotations of another origin.
    """
    if instances not in INSTANCES:
        raise ValueError(f'instances is {instances!r}; expected one of {INSTANCES}')
    if min_area < 1:
        raise ValueError(
            f'min_area is {min_area}; expected a number of pixels >= 1 (1 keeps every instance)'
        )
    source, out_dir = Path(source), Path(out_dir)
    with open_source(source, 'tar', _PATTERNS, _EXPECTED) as files:
        train = 'ImageSets/Segmentation/train.txt'
        root = files.root_of(re.escape(train), train)
        names = {split: _read_list(files, root, split) for split in SPLITS}
        _check_complete(files, root, names, instances)
        remove_stale_json(out_dir, GENERATOR)
        return _write(files, root, names, out_dir, instances, min_area)


def connected_components(mask: np.ndarray) -> np.ndarray:
    """Number the connected components of a mask, by OpenCV's union-find.

    Pixels that touch at a side or at a corner are connected (8-connectivity).

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) integers: 0 for the background, and the numbers of the components from 1, in
        the order of their first pixels, row by row.
    """
    labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[1]
    values, first = np.unique(labels[mask], return_index=True)
    numbers = np.zeros(labels.max(initial=0) + 1, dtype=np.int64)
    numbers[values[np.argsort(first)]] = np.arange(1, len(values) + 1)
    return numbers[labels]


def _read_list(files: SourceFiles, root: str, split: str) -> list[str]:
    """The sorted names of the images of a split."""
    path = f'{root}ImageSets/Segmentation/{split}.txt'
    if path not in files.names:
        raise ValueError(f'{files.path} lacks {path}; expected {_EXPECTED}')
    names = files.read(path).decode('utf-8').split()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f'{path} in {files.path} names the image {name!r}; expected '
                'letters, digits, - and _ only, such as 2007_000032'
            )
    if not names:
        raise ValueError(
            f'{path} in {files.path} is empty; expected one name per line, such as 2007_000032'
        )
    return sorted(names)


def _check_complete(
    files: SourceFiles, root: str, names: dict[str, list[str]], instances: str
) -> None:
    """Refuse lists that name an image twice, and missing images or masks."""
    counts = Counter(name for split in SPLITS for name in names[split])
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f'{name} occurs {count} times in the lists {SPLITS} of '
            f'{files.path}; expected each image in one of them, once'
        )
    wanted = [path for name in sorted(counts) for path in _paths_of(root, name, instances)]
    files.check_present(wanted, 'images and masks')


def _paths_of(root: str, name: str, instances: str) -> tuple[str, ...]:
    """Paths of the image, the class mask and, where it is used, the object mask."""
    paths = (f'{root}JPEGImages/{name}.jpg', f'{root}SegmentationClass/{name}.png')
    return paths if instances == 'components' else (*paths, f'{root}SegmentationObject/{name}.png')


def _write(
    files: SourceFiles,
    root: str,
    names: dict[str, list[str]],
    out_dir: Path,
    instances: str,
    min_area: int,
) -> dict[str, VocSplit]:
    """Write images, then both json files."""
    image_dir = out_dir / 'images'
    image_dir.mkdir(parents=True, exist_ok=True)
    split_of = {name: split for split in SPLITS for name in names[split]}
    images: dict[str, list] = {split: [] for split in SPLITS}
    annotations: dict[str, list] = {split: [] for split in SPLITS}
    dropped: Counter = Counter()
    for image_id, name in enumerate(sorted(split_of), start=1):
        split = split_of[name]
        image_file, *mask_files = _paths_of(root, name, instances)
        data = files.read(image_file)
        width, height = decode_image(files, image_file, data).size
        found = _read_instances(files, mask_files, (height, width))
        kept = [(pixels, label) for pixels, label in found if len(pixels) >= min_area]
        dropped[split] += len(found) - len(kept)
        (image_dir / f'{name}.jpg').write_bytes(data)
        images[split].append(dict(id=image_id, file_name=f'{name}.jpg', height=height, width=width))
        annotations[split] += [
            pixels_to_annotation(pixels, (height, width), image_id, label) for pixels, label in kept
        ]
    written = {}
    for split in SPLITS:
        info = dict(
            description='PASCAL VOC 2012 segmentation',
            generator=GENERATOR,
            split=split,
            instances=instances,
            min_area=min_area,
            num_dropped=dropped[split],
        )
        coco = write_split(
            out_dir, split, image_dir, info, images[split], annotations[split], VOC_CLASSES
        )
        written[split] = VocSplit(**vars(coco), num_dropped=dropped[split])
    return written


def _read_instances(
    files: SourceFiles, mask_files: list[str], shape: tuple[int, int]
) -> list[tuple[np.ndarray, int]]:
    """Pixels of the instances of an image, column by column, with their classes from 1.

    Args:
        files: The data set.
        mask_files: Names of the class mask and, where it is used, of the object mask.
        shape: (H, W) of the image.
    """
    class_file, *object_files = mask_files
    classes = read_labels(files, class_file, shape)
    strange = np.setdiff1d(classes, [*range(len(VOC_CLASSES) + 1), VOID])
    if len(strange):
        raise ValueError(
            f'the mask {class_file} in {files.path} has the value {strange[0]}; expected '
            f'classes from 0 to {len(VOC_CLASSES)}, or {VOID} for void'
        )
    if not object_files:
        return [
            (pixels, label)
            for label in np.setdiff1d(classes, [0, VOID]).tolist()
            for number, pixels in pixels_by_label(connected_components(classes == label)).items()
            if number > 0
        ]
    objects, flat_classes = read_labels(files, object_files[0], shape), classes.T.ravel()
    return [
        (pixels, _class_of(files, object_files[0], flat_classes[pixels]))
        for number, pixels in pixels_by_label(objects).items()
        if number not in (0, VOID)
    ]


def _class_of(files: SourceFiles, name: str, classes: np.ndarray) -> int:
    """The class that most pixels of an object have, of the `classes` of its pixels."""
    counts = np.bincount(classes, minlength=VOID + 1)
    counts[[0, VOID]] = 0
    if not counts.any():
        raise ValueError(
            f'an object of the mask {name} in {files.path} lies on no class; '
            'expected SegmentationObject and SegmentationClass of one image'
        )
    return int(counts.argmax())
