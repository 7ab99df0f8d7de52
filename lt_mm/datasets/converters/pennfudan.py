"""The Penn-Fudan pedestrian data set as COCO json with instance masks.

The archive has `PNGImages/NAME.png` and `PedMasks/NAME_mask.png`; the pixels of a mask are 0
for the background, or the number of a pedestrian. The folder `Annotation` repeats the boxes
and is not read.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

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

GENERATOR = 'lt_mm.datasets.converters.pennfudan'
PENNFUDAN_CLASSES = ('person',)

_IMAGE = r'PNGImages/[^/.][^/]*\.png'
_PATTERNS = [depth + part for depth in ('', '*/') for part in ('PNGImages/*', 'PedMasks/*')]
_EXPECTED = (
    'PennFudanPed.zip (about 54 MB) or the folder unpacked from it, with PNGImages/NAME.png and '
    'PedMasks/NAME_mask.png'
)


def convert_pennfudan(
    source: str | Path, out_dir: str | Path, num_val: int = 50, seed: int = 0
) -> dict[str, CocoSplit]:
    """Write the data set as `images/*.png`, `annotations/train.json` and `annotations/val.json`.

    The split is that of :func:`split_names`. Image files are copied unchanged; image ids number
    the sorted names from 1, over both splits. Every label of a mask is one instance. The json
    files are removed first and written last.

    Args:
        source: The zip, or the folder that was unpacked from it.
        out_dir: Folder to write to; made if it does not exist.
        num_val: Number of validation images; the complete data set has 170 images.
        seed: Chooses the split.

    Returns:
        What was written, for the splits 'train' and 'val'.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If `source` is neither a zip nor a folder, is damaged, has no image, lacks a
            mask, or has an entry that points out of it; or if `num_val` leaves a split empty.
        FileExistsError: If `out_dir` holds annotations of another origin.
    """
    source, out_dir = Path(source), Path(out_dir)
    with open_source(source, 'zip', _PATTERNS, _EXPECTED) as files:
        pairs = _find_pairs(files)
        val = split_names(pairs, num_val, seed)[1]
        remove_stale_json(out_dir, GENERATOR)
        return _write(files, pairs, set(val), out_dir, seed)


def split_names(names: Iterable[str], num_val: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split image names into training and validation, the same on every machine.

    Names that differ in their final digits only (FudanPed00001, FudanPed00002) form a group, and
    each group gives its share of the validation images, rounded by largest remainder. They are
    the first of the group in the order of the SHA-256 of 'SEED:NAME'.

    Args:
        names: Names of the images, in any order.
        num_val: Number of validation images.
        seed: Chooses the split.

    Returns:
        The sorted names of the training and of the validation images.

    Raises:
        ValueError: If `num_val` leaves a split empty.
    """
    groups = defaultdict(list)
    for name in names:
        groups[name.rstrip('0123456789')].append(name)
    total = sum(map(len, groups.values()))
    if not 0 < num_val < total:
        raise ValueError(
            f'num_val is {num_val} and there are {total} images; give a number from '
            f'1 to {total - 1}, so that neither split is empty'
        )
    shares = {prefix: len(group) * num_val / total for prefix, group in groups.items()}
    quotas = {prefix: int(share) for prefix, share in shares.items()}
    by_remainder = sorted(shares, key=lambda prefix: (quotas[prefix] - shares[prefix], prefix))
    for prefix in by_remainder[: num_val - sum(quotas.values())]:
        quotas[prefix] += 1

    def digest(name: str) -> str:
        return hashlib.sha256(f'{seed}:{name}'.encode()).hexdigest()

    val = {
        name for prefix in groups for name in sorted(groups[prefix], key=digest)[: quotas[prefix]]
    }
    everything = sorted(name for group in groups.values() for name in group)
    return [name for name in everything if name not in val], sorted(val)


def _find_pairs(files: SourceFiles) -> dict[str, tuple[str, str]]:
    """By image name, in sorted order, the file names of the image and of its mask."""
    root = files.root_of(_IMAGE, 'PNGImages/*.png')
    images = filter(re.compile(re.escape(root) + _IMAGE).fullmatch, files.names)
    by_name = sorted((Path(image).stem, image) for image in images)
    pairs = {name: (image, f'{root}PedMasks/{name}_mask.png') for name, image in by_name}
    files.check_present([mask for _, mask in pairs.values()], 'masks')
    return pairs


def _write(
    files: SourceFiles, pairs: dict[str, tuple[str, str]], val: set[str], out_dir: Path, seed: int
) -> dict[str, CocoSplit]:
    """Write images, then both json files."""
    image_dir = out_dir / 'images'
    image_dir.mkdir(parents=True, exist_ok=True)
    images: dict[str, list] = {split: [] for split in SPLITS}
    annotations: dict[str, list] = {split: [] for split in SPLITS}
    for image_id, (name, (image_file, mask_file)) in enumerate(pairs.items(), start=1):
        split = 'val' if name in val else 'train'
        data = files.read(image_file)
        width, height = decode_image(files, image_file, data).size
        labels = read_labels(files, mask_file, (height, width))
        (image_dir / f'{name}.png').write_bytes(data)
        images[split].append(dict(id=image_id, file_name=f'{name}.png', height=height, width=width))
        annotations[split] += [
            pixels_to_annotation(pixels, labels.shape, image_id, category_id=1)
            for label, pixels in pixels_by_label(labels).items()
            if label > 0
        ]
    written = {}
    for split in SPLITS:
        info = dict(
            description='Penn-Fudan pedestrian data set',
            generator=GENERATOR,
            num_val=len(val),
            seed=seed,
            split=split,
        )
        written[split] = write_split(
            out_dir, split, image_dir, info, images[split], annotations[split], PENNFUDAN_CLASSES
        )
    return written
