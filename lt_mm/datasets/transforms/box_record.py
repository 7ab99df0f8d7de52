"""The record of boxes: started where they are loaded, checked after every transform."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes

from lt_mm.core.provenance import Provenance, match_rows
from lt_mm.datasets.transforms.samples import ORIGIN, source_shape
from lt_mm.datasets.transforms.stock_transforms import (
    IMAGE_ONLY,
    loads,
    name_of,
    records_without_boxes,
)
from lt_mm.structures import LostRecordError, RecordedBoxes

# Result keys that a transform need not hand on for the record to stay.
_OWN_KEYS = frozenset(
    ['sample_idx', ORIGIN, 'source_shape', 'applied_transforms', 'annotation_rows']
)


class RecordedResults(dict):
    """The ``results`` of a pipeline, which pass on the provenance of recomputed boxes.

    Where a transform replaces ``gt_bboxes`` by boxes made from masks
    (``RandomCrop(recompute_bbox=True)``, ``CopyPaste``), mask i belongs to box i of
    the set that is replaced, so the new boxes inherit its provenance row by row. A set of
    another length inherits nothing, and the pipeline stops with an error.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        if key == 'gt_bboxes' and isinstance(value, RecordedBoxes):
            replaced = self.get(key)
            if value.mask_rows is not None and isinstance(replaced, RecordedBoxes):
                value.resolve(replaced)
        super().__setitem__(key, value)


class Before(NamedTuple):
    """What a transform is given: boxes, or annotations that are not loaded as boxes yet."""

    boxes: Any
    annotations: list[tuple[int, str]] | None


class BoxRecord:
    """Follows the boxes of a sample from transform to transform.

    Args:
        image_only: Class names of further transforms that move no pixel but rebuild the
            boxes from numbers.
    """

    def __init__(self, image_only: Iterable[str]) -> None:
        self._image_only = IMAGE_ONLY.union(image_only)

    def before(self, transform: Callable, results: dict) -> Before:
        """What has to be known of results before a transform runs."""
        boxes = results.get('gt_bboxes')
        is_early = boxes is None and not loads(transform)
        return Before(boxes, _annotations_of(results) if is_early else None)

    def follow(
        self, transform: Callable, before: Before, results: dict, output: dict, source_id: int
    ) -> dict:
        """Starts the record, or checks that it came through a transform.

        Args:
            transform: The transform that was run.
            before: What :meth:`before` gave.
            results: What the transform was given.
            output: What it gave.
            source_id: Id of the source image.

        Returns:
            ``output`` with the record.

        Raises:
            LostRecordError: If the transform broke the record.
        """
        if before.annotations is not None and before.annotations != _annotations_of(output):
            raise LostRecordError(  # InstaBoost, for example
                'it changed the annotations before they were loaded as gt_bboxes; no box '
                'tells how they were moved'
            )
        if output is not results:
            output = RecordedResults(output)
            for key in _OWN_KEYS.intersection(results):
                output.setdefault(key, results[key])
        if before.boxes is None:
            _start(output, source_id)
        else:
            self._check(transform, before.boxes, output)
        return output

    def _check(self, transform: Callable, before: RecordedBoxes, output: dict) -> None:
        boxes = output.get('gt_bboxes')
        if boxes is None:
            raise LostRecordError('gt_bboxes is gone from the results')
        if not isinstance(boxes, RecordedBoxes):
            boxes = output['gt_bboxes'] = self._recover(transform, before, boxes)
        if boxes.provenance is None or boxes.mask_rows is not None:
            raise LostRecordError(
                'its boxes were made from numbers or masks, not from the boxes given'
            )
        if boxes.written_behind():
            raise LostRecordError('it wrote coordinates directly into gt_bboxes.tensor')
        if len(before) == 0 and not records_without_boxes(transform):
            boxes.forget_image()

    def _recover(self, transform: Callable, before: RecordedBoxes, boxes: Any) -> RecordedBoxes:
        """The boxes before a transform that moves no pixel, as far as it kept them."""
        if name_of(transform) not in self._image_only:
            raise LostRecordError(f'it returned gt_bboxes as a new {type(boxes).__name__}')
        values = boxes.tensor.numpy() if isinstance(boxes, BaseBoxes) else boxes
        rows = match_rows(before.tensor.numpy(), np.asarray(values).reshape(-1, 4))
        if rows is None:
            raise LostRecordError(
                'it is declared image_only, but its boxes are not '
                'found, in their order, among those before it'
            )
        return before[rows]


def check_entry(results: dict) -> None:
    """Checks a sample, and the samples to mix with, before the first transform.

    Raises:
        LostRecordError: If it has no ``sample_idx``, or boxes without a record.
    """
    if 'sample_idx' not in results:
        raise LostRecordError(
            "the sample has no 'sample_idx', so its replicas cannot be told apart from "
            'other images; expected a dataset derived from mmengine.dataset.BaseDataset'
        )
    for sample in (results, *(results.get('mix_results') or ())):
        boxes = sample.get('gt_bboxes')
        if boxes is not None and not is_recorded(boxes):
            raise LostRecordError(
                'the sample arrives with gt_bboxes that nobody has recorded since they were '
                'loaded; wrap the pipeline that loads them too: dataset=dict(..., '
                "pipeline=[dict(type='lt_mm.InvertiblePipeline', transforms=[...])])"
            )


def enter_loaded(results: dict) -> RecordedResults:
    """Takes over a sample that another pipeline loaded.

    What happened since then to an image without boxes was recorded nowhere.
    """
    results = RecordedResults(results)
    boxes = results.get('gt_bboxes')
    if boxes is not None and len(boxes) == 0:
        results['gt_bboxes'] = boxes.clone()
        results['gt_bboxes'].forget_image()
    return results


def is_recorded(boxes: Any) -> bool:
    """Whether boxes have a record, and one that is true."""
    return isinstance(boxes, RecordedBoxes) and boxes.is_recorded()


def lost_message(transform: Callable, error: Exception) -> str:
    """Names the transform that lost the record, and says what to do."""
    name = name_of(transform)
    return (
        f'{name}: the record of where boxes come from is lost: {error}. Remove {name} from the '
        'transforms of InvertiblePipeline, or have it move boxes through the methods of the box '
        'type (flip_, translate_, rescale_, rotate_, project_, resize_, indexing, cat); if it '
        f"moves no pixel, declare it: dict(type='lt_mm.InvertiblePipeline', image_only=['{name}'], "
        'transforms=[...])'
    )


def _start(results: dict, source_id: int) -> None:
    """Starts the record of boxes, if they have just been loaded."""
    boxes = results.get('gt_bboxes')
    if boxes is None or is_recorded(boxes):
        return
    applied = [step for step in results.get('applied_transforms', ()) if step.has_moved]
    if applied:
        names = ', '.join(step.name for step in applied)
        raise LostRecordError(
            f'the annotations are loaded after {names}, in pixels of another image; '
            'expected the transforms that load at the start of the pipeline'
        )
    if type(boxes) is not HorizontalBoxes:
        raise LostRecordError(
            f'annotations were loaded as {type(boxes).__name__}; expected HorizontalBoxes, the '
            "default: dict(type='LoadAnnotations', with_bbox=True, box_type='hbox')"
        )
    rows = results.pop('annotation_rows', None)
    provenance = Provenance.start(boxes.tensor, source_id, rows)
    results['gt_bboxes'] = RecordedBoxes(boxes.tensor, clone=False, provenance=provenance)
    results['source_shape'] = source_shape(results)


def _annotations_of(results: dict) -> list[tuple[int, str]]:
    """Equal as long as annotations that are not loaded yet are the same."""
    return [(id(each), str(each)) for each in results.get('instances') or ()]
