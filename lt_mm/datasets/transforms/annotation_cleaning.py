"""Annotations that cannot be used are dropped, counted and logged."""

from collections.abc import Callable
from typing import Any

import numpy as np
from mmdet.structures.mask import PolygonMasks
from pycocotools import mask as mask_utils

from lt_mm.core.annotations import box_fault, mask_fault, whole_polygons
from lt_mm.datasets.reporting import Tally, warn
from lt_mm.datasets.transforms.samples import path_of, source_shape

# So many images with bad annotations are named in the log.
_NAMED_IMAGES = 100


class AnnotationCleaner:
    """Takes annotations that cannot be used out of samples; counts and logs them."""

    def __init__(self) -> None:
        self._tally = Tally(_NAMED_IMAGES)

    def load(self, transform: Any, results: dict, apply: Callable[[Callable, dict], Any]) -> Any:
        """Loads annotations: without bad boxes, and with bad masks marked as ignored.

        Args:
            transform: The stock transform that loads boxes, and perhaps masks.
            results: With ``instances``, which are replaced where they change. Gets
                ``annotation_rows``, (k,) int64, which of the annotations are left.
            apply: Runs the transform.

        Returns:
            What the transform gives.
        """
        with_masks = getattr(transform, 'with_mask', False)
        shape = source_shape(results) or (results['height'], results['width'])
        faults = self._drop_boxes(results, shape)
        if with_masks:
            with_rle = getattr(transform, 'poly2mask', True)
            faults.update(self._ignore_masks(results, shape, with_rle))
        rows = results['annotation_rows']
        output = apply(transform, results)
        if with_masks and output is not None and 'gt_masks' in output:
            for place in _without_pixel(output['gt_masks'], ~output['gt_ignore_flags']):
                output['gt_ignore_flags'][place] = True
                faults[int(rows[place])] = 'its mask has no pixel; ignored'
        if faults:
            self._report(results, faults)
        return output

    def _drop_boxes(self, results: dict, shape: tuple[int, int]) -> dict[int, str]:
        """Drops bad boxes; returns what was wrong, by row."""
        instances = results['instances']
        faults = {
            row: f'{fault}; dropped'
            for row, each in enumerate(instances)
            if (fault := box_fault(each.get('bbox'), shape)) is not None
        }
        rows = [row for row in range(len(instances)) if row not in faults]
        results['annotation_rows'] = np.array(rows, dtype=np.int64)
        if faults:
            results['instances'] = [instances[row] for row in rows]
        return faults

    def _ignore_masks(
        self, results: dict, shape: tuple[int, int], with_rle: bool
    ) -> dict[int, str]:
        """Has the stock loader ignore instances with a bad mask, which it may not notice."""
        kept, faults = list(results['instances']), {}
        for place, row in enumerate(results['annotation_rows'].tolist()):
            mask = kept[place].get('mask')
            fault, usable = mask_fault(mask, shape), []
            if fault is None and isinstance(mask, list):
                usable = whole_polygons(mask)
                if len(usable) < len(mask):
                    number = len(mask) - len(usable)
                    faults[row] = f'{number} polygons of its mask have not three points; dropped'
            elif fault is None and not with_rle:
                fault = 'its mask is RLE, which LoadAnnotations(poly2mask=False) does not load'
            if fault is not None:
                faults[row] = f'{fault}; ignored'
            if row in faults:
                # The stock loader ignores an instance without polygons.
                kept[place] = dict(kept[place], mask=usable)
        if faults:
            results['instances'] = kept
        return faults

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


def _without_pixel(masks: Any, candidates: np.ndarray) -> list[int]:
    """Places of the masks, among the candidates (n,) bool, in which no pixel is set."""
    places = np.flatnonzero(candidates)
    if isinstance(masks, PolygonMasks):
        return [
            int(place)
            for place in places
            if _area_of(masks.masks[place], masks.height, masks.width) == 0
        ]
    return places[~masks.masks[places].any(axis=(1, 2))].tolist() if len(places) else []


def _area_of(polygons: list[np.ndarray], height: int, width: int) -> int:
    parts = mask_utils.frPyObjects([each.tolist() for each in polygons], height, width)
    return int(mask_utils.area(mask_utils.merge(parts)))
