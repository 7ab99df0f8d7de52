"""Annotations that cannot be used are dropped, counted and logged."""

import numpy as np

from lt_mm.core.annotations import box_fault, mask_fault
from lt_mm.datasets.reporting import Tally, warn
from lt_mm.datasets.transforms.samples import path_of, source_shape

# So many images with bad annotations are named in the log.
_NAMED_IMAGES = 100


class AnnotationCleaner:
    """Takes annotations that cannot be used out of samples; counts and logs them."""

    def __init__(self) -> None:
        self._tally = Tally(_NAMED_IMAGES)

    def clean(self, results: dict, with_masks: bool) -> None:
        """Drops bad boxes, and has the stock loader ignore instances with a bad mask.

        Args:
            results: With ``instances``, which are replaced where they change. Gets
                ``annotation_rows``, (k,) int64, which of the annotations are left.
            with_masks: Whether masks will be loaded.
        """
        instances = results['instances']
        shape = source_shape(results) or (results['height'], results['width'])
        faults = {
            row: f'{fault}; dropped'
            for row, each in enumerate(instances)
            if (fault := box_fault(each.get('bbox'), shape)) is not None
        }
        rows = [row for row in range(len(instances)) if row not in faults]
        kept = [instances[row] for row in rows]
        for place, row in enumerate(rows if with_masks else ()):
            fault = mask_fault(kept[place].get('mask'), shape)
            if fault is not None:
                # The stock loader ignores an instance without polygons.
                kept[place] = dict(kept[place], mask=[])
                faults[row] = f'{fault}; ignored'
        results['annotation_rows'] = np.array(rows, dtype=np.int64)
        if faults:
            results['instances'] = kept
            self._report(results, faults)

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
