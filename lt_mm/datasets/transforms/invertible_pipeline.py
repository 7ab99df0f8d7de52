"""The invertible pipeline: a stock pipeline whose geometry is recorded.

``dict(type='lt_mm.InvertiblePipeline', transforms=[<the stock list>])`` runs the stock
transforms one after the other and follows the boxes through them (see
:mod:`lt_mm.structures.recorded_boxes`). At packing the record becomes fields of the data
sample. A transform that breaks the record stops the run with its name.
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms import Resize as ResizeImage
from mmdet.datasets.transforms import FixScaleResize, FixShapeResize, Resize
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmengine.structures import BaseDataElement, InstanceData

from lt_mm.core import geometry
from lt_mm.core.provenance import Provenance, match_rows
from lt_mm.datasets.transforms.bad_input import (
    AnnotationCleaner,
    BadImageError,
    SkippedImages,
    first_line,
    load_image,
    path_of,
    warn,
)
from lt_mm.registry import TRANSFORMS, register
from lt_mm.structures.errors import LostRecordError
from lt_mm.structures.record import AppliedTransform, ImageRecord, InstanceRecord
from lt_mm.structures.recorded_boxes import RecordedBoxes
from lt_mm.structures.recorded_instances import RecordedInstances

# Stock transforms that treat an image without boxes like any other: they either call
# the box type's method on the empty set or move no pixel. Every other transform may
# move the pixels of such an image unrecorded, so the image's matrix is then unknown.
_RECORDED_WITHOUT_BOXES = frozenset(
    [
        'Resize',
        'RandomResize',
        'RandomChoiceResize',
        'FixScaleResize',
        'FixShapeResize',
        'ResizeShortestEdge',
        'RandomFlip',
        'RandomShift',
        'RandomCrop',
        'Expand',
        'Pad',
        'Rotate',
        'ShearX',
        'ShearY',
        'TranslateX',
        'TranslateY',
        'AutoAugment',
        'RandAugment',
        'RandomApply',
        'RandomChoice',
        'RandomOrder',
        'Compose',
        'PhotoMetricDistortion',
        'YOLOXHSVRandomAug',
        'AutoContrast',
        'Brightness',
        'Color',
        'ColorTransform',
        'Contrast',
        'Equalize',
        'Invert',
        'Posterize',
        'Sharpness',
        'Solarize',
        'SolarizeAdd',
        'CutOut',
        'RandomErasing',
        'Corrupt',
        'FilterAnnotations',
        'Normalize',
        'RandomGrayscale',
        'ImageToTensor',
        'ToTensor',
    ]
)
# Stock transforms that draw nothing at random, so that replicas of a source can share
# what they give; subclasses may draw.
_DETERMINISTIC = (ResizeImage, Resize, FixScaleResize, FixShapeResize)
# Stock transforms that move no pixel but rebuild the boxes from numbers.
_IMAGE_ONLY = ('RandomErasing',)
# Result keys by which stock transforms tell what they did.
_TELLING_KEYS = ('img_shape', 'flip', 'flip_direction', 'scale_factor')
# Result keys that a transform need not hand on for the record to stay.
_OWN_KEYS = frozenset(['sample_idx', 'source_shape', 'applied_transforms', 'annotation_rows'])
# For so many samples of other sources a source that was left out is remembered.
_REMEMBER_FOR = 16


def describe_applied(applied: Sequence[AppliedTransform]) -> list[str]:
    """A readable line for each applied transform.

    Args:
        applied: ``data_sample.applied_transforms``.
    """
    lines = []
    for step in applied:
        told = [f'{key}={value}' for key, value in step.changes.items()]
        if step.image_matrix is not None:
            told.append(
                'source to image '
                + np.array2string(
                    step.image_matrix[:2], precision=3, suppress_small=True, separator=', '
                ).replace('\n', '')
            )
        lines.append(f'{step.name}: {"; ".join(told)}')
    return lines


class RecordedResults(dict):
    """The ``results`` of a pipeline, which passes on the provenance of recomputed boxes.

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


@register(TRANSFORMS)
class InvertiblePipeline(BaseTransform):
    """Runs a stock MMDetection or MMPretrain pipeline and records its geometry.

    Added at packing to ``gt_instances`` and ``ignored_instances`` of a data sample
    (n instances):

    - ``source_ids`` (n, 2) int64: the source image's ``sample_idx``; the instance's
      index in that image's list of annotations.
    - ``source_matrices`` (n, 3, 3) float64: homogeneous matrix from source pixels to
      replica pixels. Inverse: :func:`lt_mm.core.geometry.boxes_to_source`; exact
      where :func:`lt_mm.core.geometry.is_axis_aligned`.
    - ``visibility`` (n,) float32: area inside the image / area of the whole moved box.

    To the metainfo of the sample and of its ``gt_instances``: ``source_id`` (int),
    ``source_shape`` ((height, width) of the source image), ``recorded_shape``
    ((height, width) of the replica as recorded), ``applied_transforms`` (list of
    :class:`AppliedTransform`, see :func:`describe_applied`) and, where one matrix
    describes the whole image, ``source_matrix`` (3, 3) float64. Classification
    samples get the same metainfo; their transforms record no geometry, so they have
    a ``source_matrix`` only where nothing but loading and packing happened.

    Datasets that merge images (``MultiImageMixDataset``): wrap the inner pipeline,
    which loads, and the outer one, which mixes and packs. Where a hook switches outer
    transforms off by name (``YOLOXModeSwitchHook``), leave them outside and wrap the
    packing alone: the record travels in the boxes.

    Consecutive samples of one source load and decode it once, and share what stock
    transforms that draw nothing at random (``Resize``) do right after loading. Each
    gets arrays of its own, so that transforms may write into them.

    Bad input, where this pipeline loads: an image that cannot be read, that is a
    truncated JPEG, or that OpenCV refuses to transform, is left out, counted and
    logged. So that no group is torn, the last good image takes the place of *all* its
    replicas; only before the first good image the dataset has to find another.
    Annotated boxes that are not finite, without area or outside the image are dropped,
    counted and logged; instances whose mask cannot be decoded are ignored. For
    evaluation, where no image may take the place of another, set
    ``on_bad_image='raise'``.

    Args:
        transforms: The stock list, unchanged.
        image_only: Class names of further transforms that move no pixel but rebuild
            the boxes from numbers (``'Albu'`` with photometric augmentations alone).
            Their boxes must be found among those before it, to 0.01 px.
        sample_idx_offset: Added to ``sample_idx``. Datasets joined by
            ``ConcatDataset`` count from 0 each; give every one its own range.
        max_refetch: How often augmentation of the same source is tried again where
            the stock pipeline rejects the result (``None``), before the last good
            image takes its place.
        on_bad_image: ``'skip'`` or ``'raise'``, for files that are there and cannot be
            used. The default is to skip: one damaged file says nothing about the rest.
        on_missing_image: ``'skip'`` or ``'raise'``, for files that do not exist. The
            default is to raise, as the stock loader does: a missing file mostly means
            a wrong path or an unfinished download.
        max_skipped: So many different images may be skipped, counted over all workers
            of a rank; None for any number. Twenty in a row always raise.

    Raises:
        LostRecordError: A transform broke the record; the message names it.
        BadImageError: An image cannot be used, or too many cannot.
        FileNotFoundError: An image does not exist.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        image_only: Sequence[str] = (),
        sample_idx_offset: int = 0,
        max_refetch: int = 15,
        on_bad_image: str = 'skip',
        on_missing_image: str = 'raise',
        max_skipped: int | None = 100,
    ) -> None:
        if isinstance(transforms, (dict, str)) or not transforms:
            raise ValueError(
                f'transforms is {transforms!r}; expected the stock '
                'pipeline, a non-empty list of transforms'
            )
        self.transforms: list[Callable] = [
            TRANSFORMS.build(t) if isinstance(t, dict) else t for t in transforms
        ]
        self.image_only = frozenset(image_only) | frozenset(_IMAGE_ONLY)
        self.sample_idx_offset = sample_idx_offset
        self.max_refetch = max_refetch
        self._num_loading = _count_leading(self.transforms, _loads)
        self._num_shared = _count_leading(self.transforms, _can_be_shared)
        self._loaded_key: tuple | None = None
        self._loaded_values: dict | None = None
        self._is_repeating = True  # whether the last source came more than once
        self._skipped = SkippedImages(on_bad_image, on_missing_image, max_skipped)
        self._cleaner = AnnotationCleaner()
        self._has_rejected = False
        # As the dataset gave them: the last sample that was good, and the one that
        # takes the place of the source that last was not.
        self._last_good: dict | None = None
        self._stand_in: dict | None = None
        self._replaced_key: tuple | None = None
        self._since_replaced = 0
        self._mixers = [t for t in self.transforms if hasattr(t, 'get_indexes')]
        self._mix_counts: list[int] = []
        if self._mixers:
            # MultiImageMixDataset asks only transforms that have this attribute.
            self.get_indexes = self._get_indexes

    # -- running ---------------------------------------------------------------

    def transform(self, results: dict) -> dict | None:
        """Runs the transforms on one sample.

        Args:
            results: As the dataset gives it; needs ``sample_idx``.

        Returns:
            What the last transform gives, with the record if it packs; None where
            the sample cannot be used and no good one came before it.
        """
        _check_entry(results)
        if not self._num_loading:
            return self._augment(_enter(results), self.transforms)
        if self._is_replaced(results):
            return self._replica(self._stand_in)
        try:
            output = self._replica(results)
        except (BadImageError, FileNotFoundError) as error:
            self._skipped.skip(int(results['sample_idx']), error)
            output = None
        else:
            self._skipped.succeed()
            if output is None:
                self._note_rejection(results)
        if output is not None:
            self._last_good = results
        elif self._last_good is not None:
            self._stand_in, self._replaced_key = self._last_good, _key_of(results)
            return self._replica(self._stand_in)
        return output

    def load(self, results: dict) -> dict:
        """A source as the replicas start from it: what the transforms that load give.

        Args:
            results: As the dataset gives it; needs ``sample_idx``.

        Raises:
            BadImageError: The image cannot be used.
            FileNotFoundError: The image does not exist.
        """
        return self._augment(RecordedResults(results), self.transforms[: self._num_loading])

    def _is_replaced(self, results: dict) -> bool:
        """Whether the sample is a further replica of the source that was left out."""
        if _key_of(results) == self._replaced_key:
            self._since_replaced = 0
            return True
        # Another try in the next epoch. Images to mix with may come in between.
        self._since_replaced += 1
        if self._since_replaced > _REMEMBER_FOR:
            self._replaced_key = None
        return False

    def _replica(self, results: dict) -> dict | None:
        """One replica of a source; None where every attempt is rejected."""
        for _ in range(self.max_refetch + 1):
            output = self._augment(
                self._load(RecordedResults(results)), self.transforms[self._num_shared :]
            )
            if output is not None:
                return output
        return None

    def _note_rejection(self, results: dict) -> None:
        if not self._has_rejected:
            self._has_rejected = True
            warn(
                f'the transforms reject {path_of(results)} in {self.max_refetch + 1} '
                'attempts, so another image takes the place of its replicas; further '
                'rejections are not logged'
            )

    def _load(self, results: RecordedResults) -> RecordedResults:
        """Runs the leading loaders and what else replicas of a source can share.

        For the same source again: repeats what they gave.
        """
        key = _key_of(results)
        is_again = key == self._loaded_key
        if is_again and self._loaded_values is not None:
            self._is_repeating = True
            # The augmentations may write into arrays: each replica gets its own.
            results.update(copy.deepcopy(self._loaded_values))
            return results
        incoming = dict(results)
        results = self._augment(results, self.transforms[: self._num_shared])
        if results is None:
            raise BadImageError(f'the loading transforms reject {path_of(incoming)}')
        # Where sources come once, copies would be made for nobody.
        is_wanted = is_again or self._is_repeating
        self._loaded_values = (
            copy.deepcopy(
                {
                    name: value
                    for name, value in results.items()
                    if name not in incoming or value is not incoming[name]
                }
            )
            if is_wanted
            else None
        )
        self._loaded_key, self._is_repeating = key, is_again
        return results

    def _augment(self, results: RecordedResults, transforms: Sequence[Callable]) -> dict | None:
        mixed = results.pop('mix_results', None)
        for transform in transforms:
            if results.get('source_shape') is None:
                results['source_shape'] = _shape_of(results)
            if transform in self._mixers and mixed is not None:
                results['mix_results'] = self._take_mixed(transform, mixed)
            output = self._step(transform, results)
            if output is None or 'data_samples' in output:
                return output
            output.pop('mix_results', None)
            results = output
        return results

    def _step(self, transform: Callable, results: RecordedResults) -> dict | None:
        before = results.get('gt_bboxes')
        told = {key: results.get(key) for key in _TELLING_KEYS}
        image_matrix = _image_matrix(before)
        is_early = before is None and not _loads(transform)
        annotations = _annotations_of(results) if is_early else None
        try:
            output = self._apply(transform, results)
            if output is None:
                return None
            if 'data_samples' in output:
                if isinstance(output['data_samples'], Mapping):
                    raise LostRecordError(
                        'it packs several samples, '
                        f'{", ".join(output["data_samples"])}; expected one'
                    )
                _publish(
                    output['data_samples'],
                    results,
                    self._source_id(results),
                    self._only_loads_and_packs(),
                )
                return output
            if is_early:
                _refuse_moved_annotations(annotations, output)
            if output is not results:
                output = RecordedResults(output)
                for key in _OWN_KEYS.intersection(results):
                    output.setdefault(key, results[key])
            self._follow_boxes(transform, before, output)
        except LostRecordError as error:
            raise LostRecordError(_lost_message(transform, error)) from error
        if not _loads(transform):
            _note(transform, told, image_matrix, output)
        return output

    def _apply(self, transform: Callable, results: RecordedResults) -> dict | None:
        """Runs a transform on input that it can stand."""
        if _loads_boxes(transform) and 'instances' in results:
            results['annotation_rows'] = self._cleaner.clean(
                results, getattr(transform, 'with_mask', False)
            )
        elif _loads(transform) and 'img' not in results:
            return load_image(transform, results)
        try:
            return transform(results)
        except cv2.error as error:
            shape = results['img'].shape if 'img' in results else 'unknown'
            raise BadImageError(
                f'{path_of(results)}, of shape {shape}, cannot be transformed by '
                f'{type(transform).__name__} ({first_line(error)})'
            ) from error

    def _follow_boxes(
        self, transform: Callable, before: RecordedBoxes | None, output: RecordedResults
    ) -> None:
        """Starts the provenance, or checks that it came through the transform."""
        boxes = output.get('gt_bboxes')
        if before is None:
            if boxes is not None and not _is_recorded(boxes):
                _refuse_late_boxes(output)
                output['gt_bboxes'] = _start_record(
                    boxes, self._source_id(output), output.pop('annotation_rows', None)
                )
                output['source_shape'] = _shape_of(output)
            return
        if boxes is None:
            raise LostRecordError('gt_bboxes is gone from the results')
        if not isinstance(boxes, RecordedBoxes):
            boxes = self._recover(transform, before, boxes)
            output['gt_bboxes'] = boxes
        if boxes.provenance is None or boxes.mask_rows is not None:
            raise LostRecordError(
                'its boxes were made from numbers or masks, not from the boxes given'
            )
        if boxes.written_behind():
            raise LostRecordError('it wrote coordinates directly into gt_bboxes.tensor')
        if len(before) == 0 and not _records_without_boxes(transform):
            boxes.provenance = boxes.provenance.with_unknown_image()

    def _source_id(self, results: dict) -> int:
        # Some samplers give indices as tensors.
        return int(results['sample_idx']) + self.sample_idx_offset

    def _recover(self, transform: Callable, before: RecordedBoxes, boxes: Any) -> RecordedBoxes:
        """The provenance of boxes that a declared image-only transform rebuilt."""
        if type(transform).__name__ not in self.image_only:
            raise LostRecordError(f'it returned gt_bboxes as a new {type(boxes).__name__}')
        values = boxes.tensor.numpy() if isinstance(boxes, BaseBoxes) else boxes
        rows = match_rows(before.tensor.numpy(), np.asarray(values).reshape(-1, 4))
        if rows is None:
            raise LostRecordError(
                'it is declared image_only, but its boxes are not '
                'found, in their order, among those before it'
            )
        return before[rows]

    def _only_loads_and_packs(self) -> bool:
        """Whether nothing comes between this pipeline's own loading and packing."""
        return 0 < self._num_loading == len(self.transforms) - 1

    # -- mixing ----------------------------------------------------------------

    def _get_indexes(self, dataset: Any) -> list[int]:
        """Indices of the images that the mixing transforms want, in their order."""
        wanted = [transform.get_indexes(dataset) for transform in self._mixers]
        lists = [list(w) if isinstance(w, Sequence) else [w] for w in wanted]
        self._mix_counts = [len(indices) for indices in lists]
        return [index for indices in lists for index in indices]

    def _take_mixed(self, transform: Callable, mixed: list[dict]) -> list[dict]:
        if not self._mix_counts:  # called by hand, without a dataset
            return mixed
        place = self._mixers.index(transform)
        start = sum(self._mix_counts[:place])
        return mixed[start : start + self._mix_counts[place]]

    def __repr__(self) -> str:
        inner = ''.join(f'\n    {transform},' for transform in self.transforms)
        return f'{type(self).__name__}(transforms=[{inner}\n])'


def _loads(transform: Callable) -> bool:
    """Whether a transform loads: then it is deterministic in the sample."""
    return type(transform).__name__.startswith('Load')


def _loads_boxes(transform: Callable) -> bool:
    """Whether a transform loads axis-aligned boxes; others are refused later."""
    return (
        _loads(transform)
        and getattr(transform, 'with_bbox', False)
        and getattr(transform, 'box_type', 'hbox') in ('hbox', None)
    )


def _key_of(results: dict) -> tuple:
    """What tells a source from the others."""
    return results['sample_idx'], results.get('img_path')


def _can_be_shared(transform: Callable) -> bool:
    """Whether a transform does the same to every replica of a source."""
    return _loads(transform) or type(transform) in _DETERMINISTIC


def _count_leading(transforms: Sequence[Callable], condition: Callable[[Callable], bool]) -> int:
    """How many transforms come before the first that does not meet a condition."""
    return len(list(itertools.takewhile(condition, transforms)))


def _check_entry(results: dict) -> None:
    if 'sample_idx' not in results:
        raise LostRecordError(
            "the sample has no 'sample_idx', so its replicas cannot be told apart from "
            'other images; expected a dataset derived from mmengine.dataset.BaseDataset'
        )
    boxes = [results.get('gt_bboxes')]
    boxes += [mixed.get('gt_bboxes') for mixed in results.get('mix_results') or ()]
    for box_set in boxes:
        if box_set is not None and not _is_recorded(box_set):
            raise LostRecordError(
                'the sample arrives with gt_bboxes that nobody has recorded since they '
                'were loaded; wrap the pipeline that loads them too: '
                "dataset=dict(..., pipeline=[dict(type='lt_mm.InvertiblePipeline', "
                'transforms=[...])])'
            )


def _is_recorded(boxes: Any) -> bool:
    return isinstance(boxes, RecordedBoxes) and boxes.is_recorded()


def _enter(results: dict) -> RecordedResults:
    """A sample that another pipeline loaded.

    What happened since then to an image without boxes was recorded nowhere.
    """
    results = RecordedResults(results)
    boxes = results.get('gt_bboxes')
    if boxes is not None and len(boxes) == 0:
        boxes = boxes.clone()
        boxes.provenance = boxes.provenance.with_unknown_image()
        results['gt_bboxes'] = boxes
    return results


def _refuse_late_boxes(results: dict) -> None:
    """Boxes that are loaded after the image was moved do not lie where they say."""
    applied = results.get('applied_transforms')
    if applied:
        names = ', '.join(step.name for step in applied)
        raise LostRecordError(
            f'the annotations are loaded after {names}, in pixels of another image; '
            'expected the transforms that load at the start of the pipeline'
        )


def _annotations_of(results: dict) -> list[tuple[int, str]]:
    """What tells whether a transform changed annotations that are not loaded yet."""
    return [(id(each), str(each)) for each in results.get('instances') or ()]


def _refuse_moved_annotations(before: list[tuple[int, str]], results: dict) -> None:
    """What moves instances before they are loaded (InstaBoost) does it unrecorded."""
    if _annotations_of(results) != before:
        raise LostRecordError(
            'it changed the annotations before they were loaded as gt_bboxes; no box '
            'tells how they were moved'
        )


def _start_record(boxes: Any, image_id: int, rows: np.ndarray | None) -> RecordedBoxes:
    if type(boxes) is not HorizontalBoxes:
        raise LostRecordError(
            f'annotations were loaded as {type(boxes).__name__}; expected '
            "HorizontalBoxes, the default: dict(type='LoadAnnotations', "
            "with_bbox=True, box_type='hbox')"
        )
    return RecordedBoxes(
        boxes.tensor, clone=False, provenance=Provenance.start(boxes.tensor, image_id, rows)
    )


def _records_without_boxes(transform: Any) -> bool:
    nested = getattr(transform, 'transforms', ())
    known = _loads(transform) or type(transform).__name__ in _RECORDED_WITHOUT_BOXES
    # RandomApply holds a Compose, RandomChoice a list of them: both can be walked.
    return known and all(_records_without_boxes(inner) for inner in nested)


def _shape_of(results: dict) -> tuple[int, int] | None:
    shape = results.get('ori_shape')
    if shape is None and 'img' in results:
        shape = results['img'].shape
    return None if shape is None else tuple(shape[:2])


def _image_matrix(boxes: RecordedBoxes | None) -> np.ndarray | None:
    recorded = isinstance(boxes, RecordedBoxes) and boxes.provenance is not None
    return boxes.provenance.image_matrix if recorded else None


def _note(
    transform: Callable, told: dict, image_matrix: np.ndarray | None, results: RecordedResults
) -> None:
    """Appends what the transform did to the list for display."""
    changes = {
        key: results[key]
        for key in _TELLING_KEYS
        if key in results and not _same(results[key], told[key])
    }
    matrix = _image_matrix(results.get('gt_bboxes'))
    moved = (
        matrix is not None
        and matrix is not image_matrix
        and not np.array_equal(matrix, image_matrix)
    )
    if changes or moved:
        step = AppliedTransform(type(transform).__name__, changes, matrix.copy() if moved else None)
        # A new list: mixing transforms keep results of other samples.
        results['applied_transforms'] = [*results.get('applied_transforms', ()), step]


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(value, other)
    return value == other


def _publish(sample: BaseDataElement, results: dict, source_id: int, is_untouched: bool) -> None:
    """Writes the record into a packed data sample.

    Args:
        sample: The data sample.
        results: What was packed.
        source_id: The source image's id.
        is_untouched: Whether the image is as it was loaded.
    """
    boxes = results.get('gt_bboxes')
    shape = results['img_shape'] if 'img_shape' in results else results['img'].shape
    matrix = _image_matrix(boxes)
    if boxes is None and is_untouched:
        matrix = np.eye(3)
    record = ImageRecord(
        source_id=source_id,
        source_shape=results.get('source_shape'),
        recorded_shape=tuple(shape[:2]),
        source_matrix=None if matrix is None else matrix.copy(),
        applied_transforms=results.get('applied_transforms', []),
    )
    for name, value in record.metainfo().items():  # set_metainfo makes deep copies
        sample.set_field(value, name, field_type='metainfo')
    # Heads that see only the instances tell images apart by the path.
    metainfo = dict(record.metainfo(), img_path=results.get('img_path'))
    for name in ('gt_instances', 'ignored_instances'):
        instances = sample.get(name)
        if instances is not None and 'bboxes' in instances:
            fields = _recorded_fields(instances, record.recorded_shape)
            sample.set_field(RecordedInstances.made_of(fields, metainfo), name)


def _recorded_fields(instances: InstanceData, shape: tuple[int, int]) -> dict[str, Any]:
    """The fields of packed instances and their record."""
    boxes = instances.bboxes
    if not _is_recorded(boxes):
        raise LostRecordError(
            'the boxes that arrive at packing have no record; wrap the whole pipeline, '
            'from loading to packing, or every part of it that loads, mixes or packs'
        )
    provenance, tensor = boxes.provenance, boxes.tensor
    visibility = np.zeros(0, np.float32)
    if len(provenance):
        whole = geometry.move_boxes(provenance.source_boxes, provenance.matrices)
        visibility = geometry.visible_fraction(tensor.numpy(), whole, shape)
    record = InstanceRecord(
        # Copies, since other replicas may hold the same provenance.
        source_ids=torch.from_numpy(provenance.source_ids.copy()),
        source_matrices=torch.from_numpy(provenance.matrices.copy()),
        visibility=torch.from_numpy(visibility),
    )
    return dict(instances.items(), bboxes=HorizontalBoxes(tensor, clone=False), **vars(record))


def _lost_message(transform: Callable, error: Exception) -> str:
    name = type(transform).__name__
    return (
        f'{name}: the record of where boxes come from is lost: {error}. Remove '
        f'{name} from the transforms of InvertiblePipeline, or have it move boxes '
        'through the methods of the box type (flip_, translate_, rescale_, rotate_, '
        'project_, resize_, indexing, cat); if it moves no pixel, declare it: '
        f"dict(type='lt_mm.InvertiblePipeline', image_only=['{name}'], "
        'transforms=[...])'
    )
