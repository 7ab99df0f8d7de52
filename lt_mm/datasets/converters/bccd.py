"""The blood cells of BCCD: COCO json with boxes of three splits, and a quarter of the training.

The archive has `images/NAME.jpg` and `annotations/{train,val,test}.json`, COCO json whose
instances have boxes and no masks.
"""

import json
from pathlib import Path
from typing import Any

from lt_mm.datasets.converters.coco_json import CocoSplit, remove_stale_json, write_split
from lt_mm.datasets.converters.pennfudan import split_names
from lt_mm.datasets.converters.source_files import SourceFiles, decode_image, open_source

GENERATOR = 'lt_mm.datasets.converters.bccd'
BCCD_CLASSES = ('RBC', 'WBC', 'Platelets')

_SOURCE_SPLITS = ('train', 'val', 'test')
_QUARTER = 'train_quarter'
_KEPT = ('image_id', 'category_id', 'bbox', 'area', 'iscrowd')
_PATTERNS = [
    depth + part for depth in ('', '*/') for part in ('annotations/*.json', 'images/*.jpg')
]
_EXPECTED = (
    'bccd.zip (about 8 MB) or the folder unpacked from it, with images/NAME.jpg and '
    'annotations/train.json, val.json and test.json'
)


def convert_bccd(source: str | Path, out_dir: str | Path, seed: int = 0) -> dict[str, CocoSplit]:
    """Write `images/*.jpg` and the annotations of `train`, `val`, `test` and `train_quarter`.

    The splits are those of the archive; `train_quarter` is a quarter of the training images,
    rounded up, chosen by :func:`~lt_mm.datasets.converters.split_names`. Image files are copied
    unchanged and keep their ids. The json files are removed first and written last.

    Args:
        source: The zip, or the folder that was unpacked from it.
        out_dir: Folder to write to; made if it does not exist.
        seed: Chooses the quarter.

    Returns:
        What was written, for each of the four splits.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If `source` is neither a zip nor a folder, is damaged, has an entry that points
            out of it, lacks an image or the annotations of a split, or has other classes.
        FileExistsError: If `out_dir` holds annotations of another origin.
    """
    source, out_dir = Path(source), Path(out_dir)
    with open_source(source, 'zip', _PATTERNS, _EXPECTED) as files:
        root = files.root_of(r'annotations/train\.json', 'annotations/train.json')
        splits = {split: _read_split(files, root, split) for split in _SOURCE_SPLITS}
        splits[_QUARTER] = _quarter_of(splits['train'], seed)
        remove_stale_json(out_dir, GENERATOR, tuple(splits))
        _copy_images(files, root, splits, out_dir / 'images')
    return {split: _write(out_dir, split, coco, seed) for split, coco in splits.items()}


def _read_split(files: SourceFiles, root: str, split: str) -> dict[str, Any]:
    """The COCO json of a split of the archive, checked against its images and the classes."""
    name = f'{root}annotations/{split}.json'
    files.check_present([name], 'annotations')
    try:
        coco = json.loads(files.read(name))
        classes = [(each['id'], each['name']) for each in coco['categories']]
        image_files = [f'{root}images/{image["file_name"]}' for image in coco['images']]
        image_ids = {image['id'] for image in coco['images']}
        unknown = {annotation['image_id'] for annotation in coco['annotations']} - image_ids
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{name} in {files.path} is not COCO json ({error!r}); expected {files.expected}. '
            'Unpack or download it again'
        ) from error
    if sorted(classes) != list(enumerate(BCCD_CLASSES, start=1)):
        raise ValueError(
            f'{name} in {files.path} has the categories {classes}; expected {BCCD_CLASSES} with '
            'the ids 1 to 3, as in the data set of the three kinds of blood cells'
        )
    if unknown:
        raise ValueError(
            f'{name} in {files.path} annotates the image ids {sorted(unknown)}, which it does not '
            'list. Unpack or download it again'
        )
    files.check_present(image_files, 'images')
    return coco


def _quarter_of(train: dict[str, Any], seed: int) -> dict[str, Any]:
    """A quarter of the images, rounded up, with their annotations."""
    names = [Path(image['file_name']).stem for image in train['images']]
    chosen = set(split_names(names, -(-len(names) // 4), seed)[1])
    images = [image for image in train['images'] if Path(image['file_name']).stem in chosen]
    ids = {image['id'] for image in images}
    annotations = [each for each in train['annotations'] if each['image_id'] in ids]
    return dict(images=images, annotations=annotations)


def _copy_images(
    files: SourceFiles, root: str, splits: dict[str, dict[str, Any]], image_dir: Path
) -> None:
    image_dir.mkdir(parents=True, exist_ok=True)
    for split in _SOURCE_SPLITS:
        for image in splits[split]['images']:
            name = f'{root}images/{image["file_name"]}'
            data = files.read(name)
            size = decode_image(files, name, data).size
            if size != (image['width'], image['height']):
                raise ValueError(
                    f'{name} in {files.path} has the width and height {size}, and {split}.json '
                    f'says {(image["width"], image["height"])}. Unpack or download it again'
                )
            (image_dir / image['file_name']).write_bytes(data)


def _write(out_dir: Path, split: str, coco: dict[str, Any], seed: int) -> CocoSplit:
    info: dict[str, Any] = dict(description='BCCD, blood cells', generator=GENERATOR, split=split)
    if split == _QUARTER:
        info['seed'] = seed
    annotations = [{key: each[key] for key in _KEPT} for each in coco['annotations']]
    return write_split(
        out_dir, split, out_dir / 'images', info, coco['images'], annotations, BCCD_CLASSES
    )
