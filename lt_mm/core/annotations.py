"""Checks of annotated boxes and masks, before anything computes with them.

Every check gives None for an annotation that can be used, or words that follow 'the
annotation cannot be used: '.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

# Pixels. No image is as wide, and pycocotools walks along the outline of a mask.
LARGEST_COORDINATE = 2.0**20
# Numbers of a polygon: three points.
_SHORTEST_POLYGON = 6
# Groups of five bits in a number of a compressed RLE: the runs of pycocotools have 32 bits.
_MAX_GROUPS = 7


def box_fault(box: Any, shape: tuple[int, int]) -> str | None:
    """Finds out why a box does not cover a part of its image.

    Args:
        box: Should be xyxy, pixels.
        shape: (height, width) of the image.
    """
    height, width = shape
    largest = LARGEST_COORDINATE
    try:  # without numpy, which is slow for four numbers
        x1, y1, x2, y2 = box
        is_usable = -largest <= x1 < x2 <= largest and -largest <= y1 < y2 <= largest
        if is_usable and x1 < width and y1 < height and x2 > 0 and y2 > 0:
            return None
    except (TypeError, ValueError):
        pass
    numbers = _numbers_in(box)
    if numbers is None or numbers.shape != (4,):
        return f'the box {reprlib.repr(box)} is not four numbers'
    x1, y1, x2, y2 = numbers
    if not np.isfinite(numbers).all():
        fault = 'is not finite'
    elif np.abs(numbers).max() > largest:
        fault = 'is larger than any image'
    elif x2 <= x1 or y2 <= y1:
        fault = 'has no area'
    elif x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        fault = f'lies outside the image of {width} x {height} pixels'
    else:
        return None
    return f'the box {numbers.tolist()} {fault}'


def _numbers_in(values: Any) -> np.ndarray | None:
    """Values as float64; None if they are not numbers, or too large for it."""
    try:
        array = np.asarray(values)
        # Integers of more than 64 bits are objects.
        return array.astype(np.float64) if array.dtype.kind in 'iufO' else None
    except (OverflowError, TypeError, ValueError):  # rows of different lengths, for example
        return None


def mask_fault(mask: Any, shape: tuple[int, int]) -> str | None:
    """Finds out why a mask is of no use, or why pycocotools must not be given it.

    Args:
        mask: Should be COCO polygons or RLE.
        shape: (height, width) of the image.
    """
    if mask is None:
        return 'it has no mask'
    if isinstance(mask, list):
        return _polygon_fault(mask)
    if isinstance(mask, dict):
        return _rle_fault(mask.get('counts'), mask.get('size'), shape)
    return f'its mask is {reprlib.repr(mask)}; expected polygons or RLE'


def whole_polygons(polygons: list[Sequence[float]]) -> list[Sequence[float]]:
    """Those of three points or more; the others have no area, and the stock loader drops them."""
    return [polygon for polygon in polygons if len(polygon) >= _SHORTEST_POLYGON]


def _polygon_fault(polygons: list) -> str | None:
    for polygon in polygons:
        numbers = np.empty(0) if isinstance(polygon, list) and not polygon else _numbers_in(polygon)
        if numbers is None or numbers.ndim != 1:
            return 'its mask is not a list of polygons, [[x, y, x, y, ...], ...]'
        if len(numbers) % 2:
            return f'a polygon of its mask has {len(numbers)} numbers; expected pairs, [x, y, ...]'
        # At NaN pycocotools never returns.
        if not (np.abs(numbers) <= LARGEST_COORDINATE).all():
            return 'a polygon of its mask is not finite, or larger than any image'
    if not whole_polygons(polygons):
        return 'it has no mask' if not polygons else 'no polygon of its mask has three points'
    return None


def _rle_fault(counts: Any, size: Any, shape: tuple[int, int]) -> str | None:
    found = _numbers_in(size)
    if found is None or found.shape != (2,):
        return f'the size of its mask is {reprlib.repr(size)}; expected [height, width]'
    if tuple(found) != tuple(shape):
        return f'its mask is of {size[1]} x {size[0]} pixels, the image of {shape[1]} x {shape[0]}'
    try:
        runs = decompressed_runs(counts) if isinstance(counts, str) else counts
    except ValueError as error:
        return f'its mask is not compressed RLE: {error}'
    if not isinstance(runs, list) or not all(isinstance(run, (int, np.integer)) for run in runs):
        return f'the counts of its mask are {reprlib.repr(counts)}; expected whole numbers, or text'
    # A mask that is too short would be filled with whatever lies in memory.
    if min(runs, default=0) < 0 or sum(runs) != shape[0] * shape[1]:
        return f'the runs of its mask cover {sum(runs)} of {shape[0] * shape[1]} pixels'
    return None if any(runs[1::2]) else 'its mask has no pixel'


def decompressed_runs(counts: str) -> list[int]:
    """The lengths of runs, from COCO's compressed form.

    Each number is written in groups of five bits, the lowest first, as characters from
    '0' on. Bit 32 says that a further group follows; bit 16 of the last group is the
    sign. From the fourth number on, it is the difference to the number two before.

    Args:
        counts: ``counts`` of a compressed RLE.

    Raises:
        ValueError: If a character cannot be one of it, or if a number does not end.
    """
    runs: list[int] = []
    value = shift = 0
    for place, character in enumerate(counts):
        byte = ord(character) - 48
        if not 0 <= byte < 64 or shift >= 5 * _MAX_GROUPS:
            raise ValueError(f'character {place} is {character!r}')
        value |= (byte & 31) << shift
        shift += 5
        if byte & 32:
            continue
        if byte & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:  # pycocotools would read on behind the end
        raise ValueError('its last number does not end')
    return runs
