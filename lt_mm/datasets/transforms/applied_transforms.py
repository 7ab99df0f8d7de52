"""The list of what transforms did to a replica, for display."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform

from lt_mm.datasets.transforms.stock_transforms import name_of
from lt_mm.structures import AppliedTransform, RecordedBoxes

# Result keys by which stock transforms tell what they did.
_KEYS = ('img_shape', 'flip', 'flip_direction', 'scale_factor')
# Result key: names of the transforms that acted inside the one that is running.
_INSIDE = 'lt_applied_inside'


class Told(NamedTuple):
    """What results tell: values that stock transforms set, the matrix of the image, and itself."""

    values: dict[str, Any]
    image_matrix: np.ndarray | None
    image: Any

    def changes_since(self, before: 'Told') -> tuple[dict[str, Any], np.ndarray | None]:
        """The values that changed, and the matrix if it did."""
        changes = {
            key: value
            for key, value in self.values.items()
            if not _same(value, before.values.get(key))
        }
        matrix = self.image_matrix
        if matrix is before.image_matrix or _same(matrix, before.image_matrix):
            matrix = None
        return changes, matrix


def told_by(results: dict) -> Told:
    """What results tell of their image now."""
    return Told(
        {key: results[key] for key in _KEYS if key in results},
        image_matrix_of(results.get('gt_bboxes')),
        results.get('img'),
    )


def image_matrix_of(boxes: Any) -> np.ndarray | None:
    """(3, 3) float64, the matrix of the image that boxes lie in, where it is recorded."""
    if not isinstance(boxes, RecordedBoxes) or boxes.provenance is None:
        return None
    return boxes.provenance.image_matrix


def list_applied(transform: Callable, before: Told, results: dict) -> None:
    """Adds a transform to ``applied_transforms``, if it gave another image or told of a change.

    Args:
        transform: The transform that was run.
        before: What the results told before it.
        results: What it gave.
    """
    changes, matrix = told_by(results).changes_since(before)
    inside = tuple(results.pop(_INSIDE, ()))
    is_new = results.get('img') is not before.image
    if is_new or changes or matrix is not None or inside:
        step = AppliedTransform(
            name_of(transform), changes, None if matrix is None else matrix.copy(), inside
        )
        # A new list: mixing transforms keep results of other samples.
        results['applied_transforms'] = [*results.get('applied_transforms', ()), step]


def tell_inner(transform: Callable) -> None:
    """Has the transforms inside one (AutoAugment, RandomChoice ...) tell when they act.

    Args:
        transform: A built transform. Those inside it get a ``transform`` method of their own that
            calls the stock one; their classes stay as they are.
    """
    for inner in _innermost(transform):
        if 'transform' not in vars(inner):
            inner.transform = partial(_telling, inner, inner.transform)


def _innermost(transform: Any) -> Iterator[Any]:
    """The transforms that others hold, below any number of lists and compositions."""
    is_list = isinstance(transform, (list, tuple))
    for inner in transform if is_list else getattr(transform, 'transforms', ()):
        if isinstance(inner, (list, tuple)) or hasattr(inner, 'transforms'):
            yield from _innermost(inner)
        elif isinstance(inner, BaseTransform):
            yield inner


def _telling(transform: Any, function: Callable, results: dict) -> Any:
    """Runs a transform, and adds its name to the results if it acted.

    One with a probability gives the very image that it got where it does not act; others may
    write into that image.
    """
    told = told_by(results)
    output = function(results)
    if isinstance(output, dict):
        changes, matrix = told_by(output).changes_since(told)
        acted = output.get('img') is not told.image or changes or matrix is not None
        if acted or not hasattr(transform, 'prob'):
            output[_INSIDE] = [*output.get(_INSIDE, ()), name_of(transform)]
    return output


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return value == other
