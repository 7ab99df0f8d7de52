"""The list of what transforms did to a replica, for display."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lt_mm.datasets.transforms.stock_transforms import name_of
from lt_mm.structures import AppliedTransform, RecordedBoxes

# Result keys by which stock transforms tell what they did.
_KEYS = ('img_shape', 'flip', 'flip_direction', 'scale_factor')


class Told(NamedTuple):
    """What results tell of their image: values that stock transforms set, and its matrix."""

    values: dict[str, Any]
    image_matrix: np.ndarray | None


def told_by(results: dict) -> Told:
    """What results tell of their image now."""
    return Told(
        {key: results[key] for key in _KEYS if key in results},
        image_matrix_of(results.get('gt_bboxes')),
    )


def image_matrix_of(boxes: Any) -> np.ndarray | None:
    """(3, 3) float64, the matrix of the image that boxes lie in, where it is recorded."""
    if not isinstance(boxes, RecordedBoxes) or boxes.provenance is None:
        return None
    return boxes.provenance.image_matrix


def list_applied(transform: Callable, before: Told, results: dict) -> None:
    """Adds a transform to ``applied_transforms``, if it changed what results tell.

    Args:
        transform: The transform that was run.
        before: What the results told before it.
        results: What it gave.
    """
    changes = {
        key: results[key]
        for key in _KEYS
        if key in results and not _same(results[key], before.values.get(key))
    }
    matrix = image_matrix_of(results.get('gt_bboxes'))
    if matrix is before.image_matrix or _same(matrix, before.image_matrix):
        matrix = None
    if changes or matrix is not None:
        step = AppliedTransform(
            name_of(transform), changes, None if matrix is None else matrix.copy()
        )
        # A new list: mixing transforms keep results of other samples.
        results['applied_transforms'] = [*results.get('applied_transforms', ()), step]


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return value == other
