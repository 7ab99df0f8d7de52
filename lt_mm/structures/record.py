"""The record of a replica: what the pipeline writes into a data sample and heads read.

The names of its fields are those of the two dataclasses below, and are written nowhere
else. The record of the image lies in the metainfo of the data sample and of its
``gt_instances``; that of the instances lies beside their boxes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from lt_mm.structures.errors import (
    RECORD_HINT,
    SAMPLE_IDX_OFFSET_HINT,
    MissingRecordError,
    UnsupportedHeadError,
)


class AppliedTransform(NamedTuple):
    """One transform that changed a replica: gave another image, or told of a change.

    Attributes:
        name: Class of the transform.
        changes: Result keys that it changed, with their new values.
        image_matrix: (3, 3) float64, from pixels of the source to pixels of the image after
            it; None where the transform left the matrix as it was or no single one exists.
        inside: Classes of the transforms inside it that acted (AutoAugment, RandomChoice ...).
    """

    name: str
    changes: dict[str, Any]
    image_matrix: np.ndarray | None
    inside: tuple[str, ...] = ()

    @property
    def has_moved(self) -> bool:
        """Whether it told of more than another image, so that boxes may lie elsewhere now."""
        return bool(self.changes) or self.image_matrix is not None


class Origin(NamedTuple):
    """Which source a sample shows; known before the sample is loaded.

    Attributes:
        source_id: Number of the source image.
        num_replicas: In how many samples the sampler shows a source; None if not known.
        is_stand_in: Whether the data set put it in the place of another image.
        is_labelled: Whether the annotations of its data set count.
        is_weak: Whether it is a weak copy, from a pipeline of its own.
    """

    source_id: int
    num_replicas: int | None = None
    is_stand_in: bool = False
    is_labelled: bool = True
    is_weak: bool = False


@dataclass
class ImageRecord:
    """Where a replica comes from.

    Attributes:
        source_id: Number of the source image.
        num_replicas: In how many samples the sampler shows a source; None if not known.
        is_stand_in: Whether the data set put it in the place of another image.
        is_labelled: Whether the annotations of its data set count; the stock loss does not see an
            image of which they do not.
        is_weak: Whether it is a weak copy, from a pipeline of its own.
        source_shape: (height, width) of the source image; None if it is not known.
        recorded_shape: (height, width) of the replica as it left the pipeline.
        source_matrix: (3, 3) float64, from pixels of the source to pixels of the replica;
            None where no single matrix describes the whole image.
        applied_transforms: What was done to the replica.
    """

    source_id: int
    num_replicas: int | None = None
    is_stand_in: bool = False
    is_labelled: bool = True
    is_weak: bool = False
    source_shape: tuple[int, int] | None = None
    recorded_shape: tuple[int, int] | None = None
    source_matrix: np.ndarray | None = None
    applied_transforms: list[AppliedTransform] = field(default_factory=list)

    @classmethod
    def read(
        cls, sample: BaseDataElement | Mapping[str, Any], hint: str = RECORD_HINT
    ) -> 'ImageRecord':
        """The record of a sample.

        Args:
            sample: A data sample, its ``gt_instances``, or a sample as a dict.
            hint: What to do if there is no record.

        Raises:
            MissingRecordError: If there is none.
        """
        if 'source_id' not in sample:
            raise MissingRecordError(
                f'a {type(sample).__name__} ({sample.get("img_path") or "without a path"}) has no '
                f'source_id, so nothing tells which samples are replicas of one image; {hint}'
            )
        known = {each.name: sample.get(each.name) for each in fields(cls)}
        return cls(**{name: value for name, value in known.items() if value is not None})

    @property
    def origin(self) -> Origin:
        """The part of the record that is known before the sample is loaded."""
        source_id = int(self.source_id)  # some samplers give tensors
        return Origin(source_id, *(getattr(self, name) for name in Origin._fields[1:]))

    def metainfo(self) -> dict[str, Any]:
        """The record as metainfo of a sample, without what is not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class InstanceRecord:
    """Where the n instances of a replica come from.

    Attributes:
        source_ids: (n, 2) int64: number of the source image, place of the instance in that
            image's list of annotations.
        source_matrices: (n, 3, 3) float64, from pixels of the source to those of the replica.
        visibility: (n,) float32, area inside the image / area of the whole moved box.
        cut_sides: (n, 4) bool, whether the border, a crop or a paste cut the left, top, right and
            bottom side of the annotation, as they lie in the source: a flip changes no order.
        source_boxes: (n, 4) float32, the whole annotated boxes, xyxy in pixels of the source.
    """

    source_ids: Tensor
    source_matrices: Tensor
    visibility: Tensor
    cut_sides: Tensor
    source_boxes: Tensor

    @classmethod
    def read(cls, instances: InstanceData) -> 'InstanceRecord':
        """The record of ``gt_instances``.

        Raises:
            MissingRecordError: If they do not come from an InvertiblePipeline.
        """
        names = [each.name for each in fields(cls)]
        missing = [name for name in names if name not in instances]
        if missing or 'source_id' not in instances:
            raise MissingRecordError(
                f'gt_instances has no {", ".join(missing or ["source_id"])}, so nothing tells '
                f'which predictions show the same instance; {RECORD_HINT}'
            )
        return cls(**{name: instances[name] for name in names})


def source_ids_of(samples: Sequence[Any]) -> list[int]:
    """The source id of each sample of a batch; see :func:`origins_of`."""
    return [origin.source_id for origin in origins_of(samples)]


def origins_of(samples: Sequence[Any]) -> list[Origin]:
    """Which source each sample of a batch shows.

    Args:
        samples: Data samples, or the ``gt_instances`` of data samples.

    Raises:
        MissingRecordError: If one has no record, or if two different images have the same id.
        UnsupportedHeadError: If a sample occurs several times.
    """
    if len({id(sample) for sample in samples}) < len(samples):
        raise UnsupportedHeadError(
            f'the batch of {len(samples)} images has one of them several times, as in '
            'TridentNet, which repeats its images for every branch; expected images that '
            'were augmented independently, since predictions for the same image are not '
            'replicas. Use another detector'
        )
    check_distinct(samples)
    records = map(ImageRecord.read, samples)
    return [each.origin for each in records]


def check_distinct(samples: Sequence[Any]) -> None:
    """Makes sure that samples with the same source id show the same image.

    Args:
        samples: Data samples, ``gt_instances``, or samples as dicts.

    Raises:
        MissingRecordError: If one has no record, or if two images have the same id.
    """
    images: dict[int, Any] = {}
    for sample in samples:
        record = ImageRecord.read(sample)
        image = (sample.get('img_path'), tuple(record.source_shape or ()))
        first = images.setdefault(record.source_id, image)
        if first != image:
            raise MissingRecordError(
                f'two images have the same source_id {record.source_id}: {first} and {image}. '
                + SAMPLE_IDX_OFFSET_HINT
            )


def image_matrices(records: Sequence[InstanceData], device: torch.device) -> Tensor:
    """(B, 3, 3) float64, the matrix of each whole image, from source to replica pixels.

    Raises:
        MissingRecordError: If an image has no single matrix.
    """
    matrices = []
    for instances in records:
        record = ImageRecord.read(instances)
        if record.source_matrix is None:
            raise MissingRecordError(
                f'the image of source {record.source_id} has no single source_matrix, which '
                "pairing='iou' needs: a transform merges images, or moves images without boxes "
                "unrecorded. Use pairing='gt' in the LossTransformHead, or leave Mosaic, MixUp "
                'and CopyPaste out'
            )
        matrices.append(torch.as_tensor(record.source_matrix, dtype=torch.float64))
    return torch.stack(matrices).to(device)


def image_sizes(records: Sequence[InstanceData], name: str, device: torch.device) -> Tensor:
    """(B, 2) float64, the (width, height) of each image; infinite where it is not known.

    Args:
        records: The recorded ``gt_instances`` of each image.
        name: 'recorded_shape' for the sizes of replicas, 'source_shape' for those of sources.
        device: Where the sizes are to be.
    """
    shapes = [getattr(ImageRecord.read(instances), name) for instances in records]
    sizes = [(math.inf, math.inf) if shape is None else shape[1::-1] for shape in shapes]
    return torch.tensor(sizes, dtype=torch.float64, device=device).view(-1, 2)


def move_record(sample: Any, matrix: np.ndarray, name: str) -> None:
    """Brings the record of a data sample up to date after its boxes were moved, in place.

    Args:
        sample: With ``img_shape`` as it is now, and ``gt_instances``.
        matrix: (3, 3) float64, from pixels before to pixels after.
        name: What moved the boxes, for ``applied_transforms``.
    """
    record, shape = ImageRecord.read(sample), tuple(sample.img_shape[:2])
    moved = None if record.source_matrix is None else matrix @ record.source_matrix
    record.recorded_shape, record.source_matrix = shape, moved
    applied = AppliedTransform(name, dict(img_shape=shape), moved)
    record.applied_transforms = [*record.applied_transforms, applied]
    for holder in (sample, sample.get('gt_instances'), sample.get('ignored_instances')):
        if holder is not None:
            holder.set_metainfo(record.metainfo())
            matrices = holder.get('source_matrices')
            if matrices is not None:
                holder.source_matrices = torch.as_tensor(matrix).to(matrices) @ matrices


def refuse_moved_image(metainfo: Any) -> None:
    """Makes sure that an image was not resized after the pipeline, by a batch augment.

    Args:
        metainfo: A data sample or its metainfo.

    Raises:
        MissingRecordError: If the image has another shape than the record says.
    """
    recorded, found = metainfo.get('recorded_shape'), metainfo.get('img_shape')
    if recorded is not None and tuple(found[:2]) != tuple(recorded):
        raise MissingRecordError(
            f'an image of the batch is {tuple(found[:2])} (height, width), but left the '
            f'pipeline as {tuple(recorded)}: a batch augment such as BatchSyncRandomResize '
            'resized it, so that its matrices are wrong; have it recorded: model=dict('
            "data_preprocessor=dict(type='lt_mm.RecordingDetDataPreprocessor')), or train with "
            'tools/train.py of this project'
        )
