"""Replicas as they come out of a data set, beside what its sources are.

What is known of a source comes from what loads in the data set, not from the record of
its replicas: that record is what is looked at.
"""

import itertools
import os.path as osp
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.utils import mask2ndarray
from torch import Tensor

from lt_mm.core.geometry import (
    boxes_to_source,
    is_axis_aligned,
    map_boxes,
    restoration_errors,
    visible_fraction,
)
from lt_mm.core.seeds import seed_all
from lt_mm.datasets.checks import innermost_datasets
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.structures.errors import RECORD_HINT, MissingRecordError
from lt_mm.structures.record import AppliedTransform, source_ids_of
from lt_mm.visualization.drawing import file_of, rgb_image

LOST, BELOW, INEXACT = 'lost', 'below visibility', 'inexact'


@dataclass
class Source:
    """A source image, with n annotations that count (none that is ignored).

    Attributes:
        source_id: Its number in the record.
        name: File, or number, to be read by people.
        image: (H, W, 3) uint8 RGB.
        rows: The places of the n annotations in the data set's list.
        boxes: (n, 4) float64, pixels; None for a classifier.
        masks: (n, H, W) bool, or None.
        names: The class of each annotation; of the image for a classifier.
    """

    source_id: int
    name: str
    image: np.ndarray
    rows: list[int]
    boxes: Tensor | None
    masks: np.ndarray | None
    names: list[str]


@dataclass
class Instances:
    """The k instances of a replica; see :class:`InvertiblePipeline` for the record.

    Attributes:
        boxes: (k, 4) float64, pixels of the replica.
        source_ids: (k, 2) int64.
        matrices: (k, 3, 3) float64.
        visibility: (k,).
        restored: (k, 4) float64, the boxes brought back; pixels of their sources.
        exact: (k,) bool, whether boxes come back exactly.
        errors: (k,) float64, pixels of their sources.
        masks: (k, H, W) bool, or None.
    """

    boxes: Tensor
    source_ids: Tensor
    matrices: Tensor
    visibility: Tensor
    restored: Tensor
    exact: Tensor
    errors: Tensor
    masks: np.ndarray | None

    def of(self, source_id: int, row: int | None = None) -> list[int]:
        """Which of the k show a source, or one annotation of it."""
        return [
            k
            for k, (source, own) in enumerate(self.source_ids.tolist())
            if source == source_id and row in (None, own)
        ]


@dataclass
class Replica:
    """One replica.

    Attributes:
        source_id: The source that it is of.
        image: (H, W, 3) uint8 RGB.
        matrix: (3, 3) float64 from source to replica pixels, where one describes it.
        applied: Names of the transforms that changed it, as far as they tell.
        instances: None for a classifier.
    """

    source_id: int
    image: np.ndarray
    matrix: Tensor | None
    applied: list[str]
    instances: Instances | None


@dataclass
class Failure:
    """An annotation that a replica shows not at all, too little, or inexactly.

    Attributes:
        source: The source.
        replica: The replica.
        number: Of the replica, counted from 1.
        row: The annotation's place in the data set's list.
        kinds: One or more of ``LOST``, ``BELOW``, ``INEXACT``.
        reason: To be read by people.
        place: The instance in the replica; None if it is lost.
    """

    source: Source
    replica: Replica
    number: int
    row: int
    kinds: tuple[str, ...]
    reason: str
    place: int | None


def sources_and_replicas(
    dataset: Any, num_sources: int, num_replicas: int, seed: int
) -> Iterator[tuple[Source, list[Replica]]]:
    """Sources of a data set, drawn without replacement, and replicas of each.

    Args:
        dataset: Built; its samples come from an InvertiblePipeline.
        num_sources: At most so many.
        num_replicas: Of each source.
        seed: Of all draws.
    """
    catalog = SourceCatalog(dataset)
    order = np.random.default_rng(seed).permutation(len(dataset))
    seed_all(seed)
    for index in order[:num_sources].tolist():
        packed = [dataset[index] for _ in range(num_replicas)]
        # Usually all the same; another image takes the place of one that is unusable.
        source_id = source_ids_of([each['data_samples'] for each in packed])[0]
        yield catalog[source_id], [catalog.replica(each) for each in packed]


class SourceCatalog:
    """The sources of a data set, by their ids.

    Args:
        dataset: Also one that wraps others.

    Raises:
        MissingRecordError: If a data set that loads has no InvertiblePipeline, if ids of
            two data sets are the same, or if there is no source of an id.
    """

    def __init__(self, dataset: Any) -> None:
        self._parts = innermost_datasets(dataset)
        self._starts = [_loading_pipeline(part).sample_idx_offset for part in self._parts]
        self._loaded: dict[int, Source] = {}
        if not self._parts:
            raise MissingRecordError(
                f'{type(dataset).__name__} has no data set in it that loads sources; '
                'expected one derived from mmengine.dataset.BaseDataset'
            )
        ends = sorted(zip(self._starts, map(len, self._parts)))
        for (start, length), (following, _) in itertools.pairwise(ends):
            if start + length > following:
                raise MissingRecordError(
                    f'the source ids {following}... stand for images of two data sets; '
                    'give every part of a ConcatDataset its own range: dict('
                    "type='lt_mm.InvertiblePipeline', sample_idx_offset=<sum of the "
                    'lengths before it>, transforms=...)'
                )

    def __getitem__(self, source_id: int) -> Source:
        if source_id not in self._loaded:
            self._loaded[source_id] = self._load(source_id)
        return self._loaded[source_id]

    def _load(self, source_id: int) -> Source:
        for part, start in zip(self._parts, self._starts):
            if start <= source_id < start + len(part):
                break
        else:
            raise MissingRecordError(
                f'there is no source {source_id}; the data sets begin at {self._starts} '
                f'and have {[len(part) for part in self._parts]}. Give the pipelines of '
                'a data set that mixes images the same sample_idx_offset'
            )
        results = _loading_pipeline(part).load(part.get_data_info(source_id - start))
        path = results.get('img_path')
        classes = part.metainfo.get('classes') or ()
        source = Source(source_id, f'source {source_id}', _image_of(results), [], None, None, [])
        if path is not None:
            source.name += f' ({osp.basename(path)})'
        if results.get('gt_bboxes') is not None:
            _add_annotations(source, results, classes)
        elif 'gt_label' in results:
            labels = np.atleast_1d(results['gt_label']).tolist()
            source.names = [_name_of(classes, label) for label in labels]
        return source

    def replica(self, packed: dict) -> Replica:
        """A packed sample, as it is drawn."""
        sample = packed['data_samples']
        matrix = sample.get('source_matrix')
        return Replica(
            source_id=int(sample.source_id),
            image=rgb_image(packed['inputs'], file_of(sample) is not None),
            matrix=None if matrix is None else torch.from_numpy(matrix),
            applied=[step.name for step in sample.applied_transforms if _did(step)],
            instances=self._instances(sample.get('gt_instances')),
        )

    def _instances(self, recorded: Any) -> Instances | None:
        if recorded is None or 'source_ids' not in recorded:
            return None
        boxes, matrices = recorded.bboxes.tensor.double(), recorded.source_matrices
        annotated = [
            self[source].boxes[self[source].rows.index(row)]
            for source, row in recorded.source_ids.tolist()
        ]
        annotated = torch.stack(annotated) if annotated else boxes
        masks = recorded.get('masks')
        return Instances(
            boxes=boxes,
            source_ids=recorded.source_ids,
            matrices=matrices,
            visibility=recorded.visibility,
            restored=boxes_to_source(boxes, matrices),
            exact=is_axis_aligned(matrices),
            errors=restoration_errors(boxes, matrices, annotated, recorded.visibility),
            masks=None if masks is None else mask2ndarray(masks).astype(bool),
        )


def find_failures(source: Source, replicas: list[Replica], min_visibility: float) -> list[Failure]:
    """The annotations that are lost, too little visible, or inexact in a replica.

    Args:
        source: The source; for a classifier there is nothing to find.
        replicas: Replicas; those of other sources are left out.
        min_visibility: Instances less visible than this pair with nothing.
    """
    failures = []
    for number, replica in enumerate(replicas, start=1):
        if source.boxes is None or replica.source_id != source.source_id:
            continue
        for row in source.rows:
            places = replica.instances.of(source.source_id, row)
            for place in places or [None]:
                faults = (
                    _faults(replica.instances, place, min_visibility)
                    if places
                    else {LOST: _why_lost(source, replica, row)}
                )
                if faults:
                    failures.append(
                        Failure(
                            source,
                            replica,
                            number,
                            row,
                            tuple(faults),
                            '; '.join(faults.values()),
                            place,
                        )
                    )
    return failures


def _faults(instances: Instances, place: int, min_visibility: float) -> dict[str, str]:
    """By kind, in words, what an instance of a replica is not fit for."""
    faults, visibility = {}, float(instances.visibility[place])
    if visibility < min_visibility:
        faults[BELOW] = f'{visibility:.1%} visible, less than {min_visibility:.0%}'
    if not instances.exact[place]:
        faults[INEXACT] = (
            'rotated or sheared: the box comes back up to '
            f'{float(instances.errors[place]):.1f} px too large'
        )
    return faults


def _why_lost(source: Source, replica: Replica, row: int) -> str:
    if replica.matrix is None:
        return 'lost; where it went is not known, since images were merged'
    box = source.boxes[source.rows.index(row)]
    moved = map_boxes(box, replica.matrix).numpy()[None]
    inside = float(visible_fraction(moved, moved, replica.image.shape)[0])
    if inside == 0:
        return 'lost: moved out of the image'
    return f'lost: removed by a transform, though {inside:.0%} of it lies inside'


def _did(step: AppliedTransform) -> bool:
    """Whether a transform changed the replica; a flip tells as well that it did not."""
    told = [value for value in step.changes.values() if value is not None and value is not False]
    return bool(told) or step.image_matrix is not None


def _loading_pipeline(part: Any) -> InvertiblePipeline:
    first = next(iter(part.pipeline.transforms), None)
    if not isinstance(first, InvertiblePipeline):
        raise MissingRecordError(
            f'the pipeline of {type(part).__name__} begins with {type(first).__name__}, '
            f'which records nothing; {RECORD_HINT}, also that of the data set inside '
            'a data set that mixes images'
        )
    return first


def _image_of(results: dict) -> np.ndarray:
    if 'img' not in results:
        raise ValueError(
            f'the transforms that load give {sorted(results)}, no img, so the source '
            'cannot be drawn; expected a pipeline that begins with transforms whose '
            "names begin with 'Load', such as dict(type='LoadImageFromFile')"
        )
    return rgb_image(results['img'], file_of(results) is not None)


def _add_annotations(source: Source, results: dict, classes: Any) -> None:
    boxes = results['gt_bboxes']
    kept = np.flatnonzero(~np.asarray(results['gt_ignore_flags'], dtype=bool))
    source.rows = boxes.provenance.source_ids[kept, 1].tolist()
    source.boxes = boxes.tensor[torch.from_numpy(kept)].double()
    labels = np.asarray(results['gt_bboxes_labels'])[kept].tolist()
    source.names = [_name_of(classes, label) for label in labels]
    if 'gt_masks' in results:
        source.masks = mask2ndarray(results['gt_masks'])[kept].astype(bool)


def _name_of(classes: Any, label: int) -> str:
    return str(classes[label]) if label < len(classes) else f'class {label}'
