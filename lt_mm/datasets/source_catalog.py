"""Replicas as they come out of a data set, beside what its sources are.

What is known of a source comes from the transforms that load it, not from the record of
its replicas: that record is what is examined.
"""

import os.path as osp
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmdet.models.utils import mask2ndarray
from torch import Tensor

from lt_mm.core.geometry import boxes_to_source, is_axis_aligned, restoration_errors
from lt_mm.core.seeds import seed_all
from lt_mm.datasets.checks import innermost_datasets
from lt_mm.datasets.display import class_name, file_of, rgb_image
from lt_mm.datasets.source_numbers import number_sources
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.structures.errors import RECORD_HINT, MissingRecordError
from lt_mm.structures.record import AppliedTransform, ImageRecord, InstanceRecord, source_ids_of


@dataclass
class Source:
    """A source image and its n annotations, without those that are ignored.

    Attributes:
        source_id: Its number in the record.
        name: Its number and file, as people read them.
        image: (H, W, 3) uint8 RGB.
        names: The class of each annotation; for a classifier, of the image.
        is_detection: Whether instances are annotated; if not, n is 0.
        rows: The places of the n annotations in the data set's list.
        boxes: (n, 4) float64, pixels.
        masks: (n, H, W) bool, or None.
    """

    source_id: int
    name: str
    image: np.ndarray
    names: list[str] = field(default_factory=list)
    is_detection: bool = False
    rows: list[int] = field(default_factory=list)
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4, dtype=torch.float64))
    masks: np.ndarray | None = None

    def box_of(self, row: int) -> Tensor:
        """The box (4,) of the annotation at a place in the data set's list."""
        return self.boxes[self.rows.index(row)]


@dataclass
class Instances:
    """The k instances of a replica, with their record and what it brings them back to.

    Attributes:
        boxes: (k, 4) float64, pixels of the replica.
        source_ids: (k, 2) int64; see :class:`lt_mm.structures.record.InstanceRecord`.
        matrices: (k, 3, 3) float64, from pixels of the source to pixels of the replica.
        visibility: (k,).
        restored: (k, 4) float64, the boxes brought back; pixels of their sources.
        exact: (k,) bool, whether boxes come back exactly.
        errors: (k,) float64, pixels of their sources.
        masks: (k, H, W) bool, or None.
        sources: The sources that they are of, by number.
    """

    boxes: Tensor
    source_ids: Tensor
    matrices: Tensor
    visibility: Tensor
    restored: Tensor
    exact: Tensor
    errors: Tensor
    masks: np.ndarray | None
    sources: dict[int, Source]

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
        source_id: The source that it is a replica of.
        image: (H, W, 3) uint8 RGB.
        matrix: (3, 3) float64, from pixels of the source to pixels of the replica; None
            where no single matrix describes the image.
        applied: The transforms that are recorded to have changed it, with what acted inside them.
        instances: None for a classifier.
    """

    source_id: int
    image: np.ndarray
    matrix: Tensor | None
    applied: list[str]
    instances: Instances | None


def sources_and_replicas(
    dataset: Any, num_sources: int, num_replicas: int, seed: int
) -> Iterator[tuple[Source, list[Replica]]]:
    """Draws sources of a data set without replacement, and replicas of each.

    Args:
        dataset: A built data set whose samples come from an InvertiblePipeline.
        num_sources: At most so many sources are drawn.
        num_replicas: So many replicas of each source are made.
        seed: Seed of the choice of sources and of the augmentations.
    """
    catalog = SourceCatalog(dataset)
    order = np.random.default_rng(seed).permutation(len(dataset))
    seed_all(seed, within=dataset)
    for index in order[:num_sources].tolist():
        packed = [dataset[index] for _ in range(num_replicas)]
        # Usually all are the same; another image takes the place of an unusable one.
        source_id = source_ids_of([each['data_samples'] for each in packed])[0]
        yield catalog[source_id], [catalog.replica(each) for each in packed]


class SourceCatalog:
    """The sources of a data set, by their ids.

    Args:
        dataset: A built data set, which may wrap others.

    Raises:
        MissingRecordError: If a data set that loads images has no InvertiblePipeline, if
            two data sets have the same ids, or if no source has an id that is asked for.
    """

    def __init__(self, dataset: Any) -> None:
        number_sources(dataset)
        self._parts = innermost_datasets(dataset)
        self._starts = [_loading_pipeline(part).sample_idx_offset for part in self._parts]
        self._loaded: dict[int, Source] = {}
        if not self._parts:
            raise MissingRecordError(
                f'{type(dataset).__name__} has no data set in it that loads sources; '
                'expected one derived from mmengine.dataset.BaseDataset'
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
                f'and have {[len(part) for part in self._parts]} images; expected samples that '
                'were loaded after this catalog was made'
            )
        results = _loading_pipeline(part).load(part.get_data_info(source_id - start))
        path, classes = results.get('img_path'), part.metainfo.get('classes')
        name = f'source {source_id}' + (f' ({osp.basename(path)})' if path is not None else '')
        source = Source(source_id, name, _image_of(results))
        labels = results.get('gt_label', [])
        if results.get('gt_bboxes') is not None:
            labels = _add_annotations(source, results)
        source.names = [class_name(classes, label) for label in np.atleast_1d(labels).tolist()]
        return source

    def replica(self, packed: dict) -> Replica:
        """The replica that a packed sample holds."""
        sample = packed['data_samples']
        record = ImageRecord.read(sample)
        return Replica(
            source_id=int(record.source_id),
            image=rgb_image(packed['inputs'], file_of(sample) is not None),
            matrix=None if record.source_matrix is None else torch.from_numpy(record.source_matrix),
            applied=[_words(step) for step in record.applied_transforms if _has_effect(step)],
            instances=self._instances(sample.get('gt_instances')),
        )

    def _instances(self, annotated: Any) -> Instances | None:
        if annotated is None or 'source_ids' not in annotated:
            return None
        record, boxes = InstanceRecord.read(annotated), annotated.bboxes.tensor.double()
        matrices, masks = record.source_matrices, annotated.get('masks')
        sources = {source: self[source] for source, _ in record.source_ids.tolist()}
        own = [sources[source].box_of(row) for source, row in record.source_ids.tolist()]
        return Instances(
            boxes=boxes,
            source_ids=record.source_ids,
            matrices=matrices,
            visibility=record.visibility,
            restored=boxes_to_source(boxes, matrices),
            exact=is_axis_aligned(matrices),
            errors=restoration_errors(
                boxes, matrices, torch.stack(own) if own else boxes, record.visibility
            ),
            masks=None if masks is None else mask2ndarray(masks).astype(bool),
            sources=sources,
        )


def _has_effect(step: AppliedTransform) -> bool:
    """Whether a transform changed the replica: a flip also records that it was not drawn."""
    is_told = step.image_matrix is not None or bool(step.inside)
    return is_told or step.changes.get('flip') is not False


def _words(step: AppliedTransform) -> str:
    """The name of a transform, and what it did where it had a choice."""
    did = ', '.join(step.inside) or step.changes.get('flip_direction')
    return f'{step.name} ({did})' if did else step.name


def _loading_pipeline(part: Any) -> InvertiblePipeline:
    first = next(iter(part.pipeline.transforms), None)
    if not isinstance(first, InvertiblePipeline):
        raise MissingRecordError(
            f'the pipeline of {type(part).__name__} begins with {type(first).__name__}, '
            f'which records nothing; {RECORD_HINT}. Where a data set mixes images, wrap the '
            'pipeline of the data set inside it too'
        )
    return first


def _image_of(results: dict) -> np.ndarray:
    if 'img' not in results:
        raise ValueError(
            f'the transforms that load give {sorted(results)} but no img, so the source '
            'cannot be drawn; expected a pipeline that begins with transforms whose '
            "names begin with 'Load', such as dict(type='LoadImageFromFile')"
        )
    return rgb_image(results['img'], file_of(results) is not None)


def _add_annotations(source: Source, results: dict) -> np.ndarray:
    """Adds the boxes and masks that were loaded to a source; returns their labels (n,)."""
    boxes = results['gt_bboxes']
    kept = np.flatnonzero(~np.asarray(results['gt_ignore_flags'], dtype=bool))
    source.is_detection = True
    source.rows = boxes.provenance.source_ids[kept, 1].tolist()
    source.boxes = boxes.tensor[torch.from_numpy(kept)].double()
    if 'gt_masks' in results:
        source.masks = mask2ndarray(results['gt_masks'])[kept].astype(bool)
    return np.asarray(results['gt_bboxes_labels'])[kept]
