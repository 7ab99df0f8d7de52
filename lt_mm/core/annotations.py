"""Checks of annotated boxes and masks, before anything computes with them.

Every check gives None for an annotation that can be used, or words that follow 'the
annotation cannot be used: '.
"""

from typing import Any

import numpy as np

# Pixels. No image is as wide, and pycocotools walks along the outline of a mask.
LARGEST_COORDINATE = 2.0**20


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
    try:
        numbers = np.array(box, dtype=np.float64).reshape(4)
    except (TypeError, ValueError):
        return f'the box {box!r} is not four numbers'
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


def mask_fault(mask: Any, shape: tuple[int, int]) -> str | None:
    """Finds out why pycocotools must not be given a mask.

    Args:
        mask: COCO polygons or RLE. Of other masks, which the stock loader ignores by
            itself, nothing is said.
        shape: (height, width) of the image.
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
    runs = decompressed_runs(counts) if isinstance(counts, str) else counts
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


def decompressed_runs(counts: str) -> list[int]:
    """The lengths of runs, from COCO's compressed form.

    Each number is written in groups of five bits, the lowest first, as characters from
    '0' on. Bit 32 says that a further group follows; bit 16 of the last group is the
    sign. From the fourth number on, it is the difference to the number two before.

    Args:
        counts: ``counts`` of a compressed RLE.
    """
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
