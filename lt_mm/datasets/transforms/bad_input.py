"""Single images and annotations that cannot be used: found, counted and logged.

What is wrong with a whole data set is an error before training instead, see
:mod:`lt_mm.datasets.checks`.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log

# Pixels; no image is as wide, and pycocotools walks along the outline of a mask.
LARGEST_COORDINATE = 2.0**20
# Images with bad annotations that are named in the log.
_NAMED_IMAGES = 100
# Unreadable images in a row: then it is not the images.
_IN_A_ROW = 20
_POLICIES = ('skip', 'raise')
_END = b'\xff\xd9'  # the marker of the end of a JPEG


class BadImageError(ValueError):
    """An image cannot be read, or the transforms cannot work on it."""


class Tally:
    """Distinct numbers, counted by all processes that a data loader starts.

    They lie in shared memory, because the workers of every epoch may be new ones. Each
    number has its own place there, so that workers seldom write to the same one.

    Args:
        capacity: How many different numbers are remembered.
    """

    def __init__(self, capacity: int) -> None:
        self._numbers = torch.full((capacity,), -1, dtype=torch.int64).share_memory_()

    def add(self, number: int) -> bool:
        """Whether the number (0 or more) is new and was remembered."""
        size = len(self._numbers)
        for place in (slot % size for slot in range(number, number + size)):
            found = int(self._numbers[place])
            if found == number:
                return False
            if found == -1:
                self._numbers[place] = number
                return True
        return False

    def __len__(self) -> int:
        return int((self._numbers != -1).sum())

    def is_full(self) -> bool:
        """Whether further numbers are not remembered."""
        return len(self) == len(self._numbers)


class SkippedImages:
    """Counts and logs the images that are left out, and stops at too many.

    Args:
        on_bad_image: 'skip' or 'raise', for images that cannot be read.
        on_missing_image: 'skip' or 'raise', for files that do not exist.
        limit: So many different images may be left out; None for any number.

    Raises:
        ValueError: If an argument is none of these.
    """

    def __init__(self, on_bad_image: str, on_missing_image: str, limit: int | None) -> None:
        for name, value in (('on_bad_image', on_bad_image), ('on_missing_image', on_missing_image)):
            if value not in _POLICIES:
                raise ValueError(f'{name} is {value!r}; expected one of {_POLICIES}')
        if limit is not None and not (isinstance(limit, int) and limit >= 0):
            raise ValueError(
                f'max_skipped is {limit!r}; expected a number of images, '
                '0 or more, or None for any number'
            )
        self.on_bad_image = on_bad_image
        self.on_missing_image = on_missing_image
        self.limit = limit
        self._tally = Tally(2**16 if limit is None else limit + 1)
        self._in_a_row = 0

    def succeed(self) -> None:
        """Takes note of an image that could be used."""
        self._in_a_row = 0

    def skip(self, source: int, error: Exception) -> None:
        """Counts and logs an image.

        Args:
            source: The image's ``sample_idx``.
            error: What is wrong; a FileNotFoundError where the file does not exist.

        Raises:
            BadImageError: If images are not to be skipped, or too many were.
            FileNotFoundError: Likewise, for a missing file.
        """
        missing = isinstance(error, FileNotFoundError)
        option = 'on_missing_image' if missing else 'on_bad_image'
        if getattr(self, option) == 'raise':
            hint = (
                'check data_root and data_prefix of train_dataloader.dataset, or leave such images'
                if missing
                else 'repair the file, or leave it'
            )
            raise type(error)(
                f"{error}; {hint} out: dict(type='lt_mm.InvertiblePipeline', {option}='skip', ...)"
            ) from error
        is_new = self._tally.add(source)
        self._in_a_row += 1
        count = len(self._tally)
        if self.limit is not None and count > self.limit:
            raise BadImageError(
                f'{count} images could not be used, more than max_skipped='
                f'{self.limit}; the last one: {error}. Repair the files, or allow more: '
                f"dict(type='lt_mm.InvertiblePipeline', max_skipped={10 * count}, ...), "
                'None for any number'
            ) from error
        if self._in_a_row >= _IN_A_ROW:
            raise BadImageError(
                f'{self._in_a_row} images in a row could not be used; the last one: '
                f'{error}. Check data_root, data_prefix and the transforms of '
                'train_dataloader.dataset'
            ) from error
        if is_new:
            warn(
                f'{error}; left out, and another image takes the place of all its '
                f'replicas (images left out so far: {count})'
            )


class AnnotationCleaner:
    """Takes bad annotations out of samples, counts and logs them."""

    def __init__(self) -> None:
        self._tally = Tally(_NAMED_IMAGES)

    def clean(self, results: dict, with_masks: bool) -> np.ndarray:
        """Drops boxes that are no boxes, and has instances without a mask ignored.

        Args:
            results: With ``instances``, and ``img`` if it is loaded by now. The list
                is replaced where it changes.
            with_masks: Whether masks will be loaded.

        Returns:
            (k,) int64, which of the annotations are left.
        """
        instances, shape = results['instances'], _shape_of(results)
        faults = box_faults([each.get('bbox') for each in instances], shape)
        if not faults and not with_masks:
            return np.arange(len(instances))
        rows = [row for row in range(len(instances)) if row not in faults]
        kept = [instances[row] for row in rows]
        if with_masks:
            for place, row in enumerate(rows):
                fault = mask_fault(kept[place].get('mask'), shape)
                if fault is not None:
                    # What the stock loader ignores: no polygon is left.
                    kept[place] = dict(kept[place], mask=[])
                    faults[row] = f'{fault}; ignored'
        if faults:
            results['instances'] = kept
            self._report(results, faults)
        return np.array(rows, dtype=np.int64)

    def _report(self, results: dict, faults: dict[int, str]) -> None:
        if not self._tally.add(int(results['sample_idx'])):
            return
        named = '; '.join(f'number {row}: {fault}' for row, fault in list(faults.items())[:3])
        more = f' and {len(faults) - 3} more' if len(faults) > 3 else ''
        end = '; no further ones are named' if self._tally.is_full() else ''
        warn(
            f'annotations of {path_of(results)} cannot be used: {named}{more} '
            f'(such images so far: {len(self._tally)}{end})'
        )


def _shape_of(results: dict) -> tuple[int, int]:
    if 'img' in results:
        return results['img'].shape[:2]
    return results['height'], results['width']


def box_faults(boxes: Sequence[Any], shape: tuple[int, int]) -> dict[int, str]:
    """What is wrong with annotated boxes.

    Args:
        boxes: n times xyxy, pixels.
        shape: (height, width) of the image.

    Returns:
        By row, for the boxes that do not cover a part of the image.
    """
    faults = {
        row: _box_fault(box, shape) for row, box in enumerate(boxes) if not _is_box(box, shape)
    }
    return {row: fault for row, fault in faults.items() if fault is not None}


def _is_box(box: Any, shape: tuple[int, int]) -> bool:
    """Whether a box covers a part of the image; False where it is not four numbers."""
    height, width = shape
    try:
        x1, y1, x2, y2 = box
        return bool(
            -LARGEST_COORDINATE <= x1 < x2 <= LARGEST_COORDINATE
            and -LARGEST_COORDINATE <= y1 < y2 <= LARGEST_COORDINATE
            and x1 < width
            and y1 < height
            and x2 > 0
            and y2 > 0
        )
    except (TypeError, ValueError):
        return False


def _box_fault(box: Any, shape: tuple[int, int]) -> str | None:
    try:
        numbers = np.array(box, dtype=np.float64).reshape(4)
    except (TypeError, ValueError):
        return f'the box {box!r} is not four numbers; dropped'
    x1, y1, x2, y2 = numbers
    if not np.isfinite(numbers).all():
        fault = 'is not finite'
    elif np.abs(numbers).max() > LARGEST_COORDINATE:
        fault = 'is larger than any image'
    elif x2 <= x1 or y2 <= y1:
        fault = 'has no area'
    elif not _is_box(numbers, shape):
        fault = f'lies outside the image of {shape[1]} x {shape[0]} pixels'
    else:
        return None
    return f'the box {numbers.tolist()} {fault}; dropped'


def mask_fault(mask: Any, shape: tuple[int, int]) -> str | None:
    """What is wrong with an annotated mask, so that it must not be decoded.

    Args:
        mask: COCO polygons or RLE.
        shape: (height, width) of the image.

    Returns:
        Words, or None for a mask that pycocotools can be given, and for one that the
        stock loader itself has ignored.
    """
    if mask is None:
        return 'it has no mask'
    if isinstance(mask, list):
        return _polygon_fault(mask)
    counts, size = mask.get('counts'), mask.get('size')
    if not isinstance(counts, (list, str)) or size is None:
        return None
    if tuple(size) != tuple(shape):
        return f'its mask is of {size[1]} x {size[0]} pixels, the image of {shape[1]} x {shape[0]}'
    runs = _decompressed(counts) if isinstance(counts, str) else counts
    # A mask that is too short would be filled with whatever lies in memory.
    if min(runs, default=0) < 0 or sum(runs) != shape[0] * shape[1]:
        return f'the runs of its mask cover {sum(runs)} of {shape[0] * shape[1]} pixels'
    return None


def _polygon_fault(polygons: list) -> str | None:
    for polygon in polygons:
        try:
            numbers = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(())
        if numbers.ndim != 1:
            return 'its mask is not a list of polygons, [[x, y, x, y, ...], ...]'
        # At NaN pycocotools never returns.
        if not (np.abs(numbers) <= LARGEST_COORDINATE).all():
            return 'a polygon of its mask is not finite, or larger than any image'
    return None


def _decompressed(counts: str) -> list[int]:
    """The lengths of runs in COCO's compressed form."""
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode('utf-8'):
        value |= (byte - 48 & 31) << shift
        shift += 5
        if byte - 48 & 32:
            continue
        if byte - 48 & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def load_image(load: Callable, results: dict) -> dict:
    """Runs a transform that loads an image.

    Args:
        load: The transform.
        results: With ``img_path``.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadImageError: If it cannot be read, or only a part of it.
    """
    path = path_of(results)
    try:
        output = load(results)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f'there is no image {path}') from error
    except (OSError, cv2.error, AssertionError) as error:
        raise BadImageError(f'{path} cannot be read as an image ({first_line(error)})') from error
    if output is None:
        raise BadImageError(f'{path} cannot be read as an image')
    if isinstance(load, LoadImageFromFile) and isinstance(path, str):
        _refuse_truncated(load, path)
    return output


def _refuse_truncated(load: LoadImageFromFile, path: str) -> None:
    """OpenCV before 4.12 paints what is missing of a JPEG grey and says nothing.

    (Of other formats it gives no image.) Most files end with the marker, and on a disk
    a look at the last two bytes is enough. Others are read once more, so of the two or
    more replicas of a source no more reads are made than by the stock pipeline.
    """
    if load.file_client_args is not None:
        data = fileio.FileClient.infer_client(load.file_client_args, path).get(path)
    else:
        backend = fileio.get_file_backend(
            path, backend_args=load.backend_args, enable_singleton=True
        )
        # No end of a thumbnail: in what was decoded, pixels follow the header.
        if isinstance(backend, fileio.LocalBackend) and _last_two(path) == _END:
            return
        data = backend.get(path)
    if data[:2] == b'\xff\xd8' and not _has_end(data):
        raise BadImageError(
            f'{path} is a truncated JPEG: {len(data)} bytes without the marker of the end'
        )


def _last_two(path: str) -> bytes:
    with open(path, 'rb', buffering=0) as file:
        file.seek(-2, os.SEEK_END)
        return file.read(2)


def _has_end(jpeg: bytes) -> bool:
    """Whether the marker of the end follows the pixels.

    A thumbnail in the header has such a marker too; the segments of the header, which
    tell their length, are passed over.
    """
    place = 2
    while jpeg[place : place + 1] == b'\xff' and jpeg[place + 1 : place + 2] != b'\xda':
        is_filler = jpeg[place + 1 : place + 2] == b'\xff'
        place += 1 if is_filler else 2 + int.from_bytes(jpeg[place + 2 : place + 4], 'big')
    return jpeg.find(_END, place) >= 0


def path_of(results: dict) -> str:
    """The path of a sample's image, or words for one that has none."""
    return results.get('img_path') or f'the image of sample_idx {results["sample_idx"]}'


def first_line(error: Exception) -> str:
    """What an error says, briefly; OpenCV's are long and say it in ``err``."""
    return (getattr(error, 'err', '') or str(error)).strip().partition('\n')[0][:200]


def warn(message: str) -> None:
    """Logs with MMEngine's logger, from worker processes too."""
    print_log(message, logger='current', level=logging.WARNING)
