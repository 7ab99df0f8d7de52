"""The record is written into packed data samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import BaseDataElement, InstanceData

from lt_mm.core.geometry import cut_sides, move_boxes, visible_fraction
from lt_mm.datasets.transforms.applied_transforms import image_matrix_of
from lt_mm.datasets.transforms.box_record import is_recorded
from lt_mm.datasets.transforms.samples import ORIGIN
from lt_mm.structures import ImageRecord, InstanceRecord, LostRecordError, RecordedInstances


def refuse_frames(names: Sequence[str]) -> None:
    """Refuses pipelines whose samples are several frames of a video.

    Args:
        names: Class names of the transforms.

    Raises:
        LostRecordError: If one of them packs frames.
    """
    if 'PackTrackInputs' in names:
        raise LostRecordError(
            'PackTrackInputs packs several frames of a video, while a record is that of one '
            "image; expected the pipeline of a detector, which ends with dict(type='PackDetInputs')"
        )


def write_record(sample: BaseDataElement | Mapping, results: dict, is_untouched: bool) -> None:
    """Writes the record into a packed data sample.

    Args:
        sample: The data sample.
        results: What was packed.
        is_untouched: Whether the image is as it was loaded.

    Raises:
        LostRecordError: If several samples were packed, or boxes without a record.
    """
    if isinstance(sample, Mapping):
        raise LostRecordError(f'it packs several samples, {", ".join(sample)}; expected one')
    boxes = results.get('gt_bboxes')
    shape = tuple(results['img_shape'] if 'img_shape' in results else results['img'].shape)[:2]
    matrix = np.eye(3) if boxes is None and is_untouched else image_matrix_of(boxes)
    record = ImageRecord(
        **results[ORIGIN]._asdict(),
        source_shape=results.get('source_shape'),
        recorded_shape=shape,
        source_matrix=None if matrix is None else matrix.copy(),
        applied_transforms=results.get('applied_transforms', []),
    )
    if not record.is_labelled and hasattr(sample, 'set_gt_label'):
        # MMPretrain's preprocessor wants the field in all samples, or in none.
        sample.set_gt_label(torch.zeros(0, dtype=torch.int64))
    metainfo = record.metainfo()
    for name, value in metainfo.items():  # set_metainfo makes deep copies
        sample.set_field(value, name, field_type='metainfo')
    # Heads that see only the instances tell images apart by the path.
    metainfo['img_path'] = results.get('img_path')
    for name in ('gt_instances', 'ignored_instances'):
        instances = sample.get(name)
        if instances is not None and 'bboxes' in instances:
            fields = _recorded_fields(instances, shape)
            sample.set_field(RecordedInstances.made_of(fields, metainfo), name)


def _recorded_fields(instances: InstanceData, shape: tuple[int, int]) -> dict[str, Any]:
    """The fields of packed instances and their record."""
    boxes = instances.bboxes
    if not is_recorded(boxes):
        raise LostRecordError(
            'the boxes that arrive at packing have no record; wrap the whole pipeline, '
            'from loading to packing, or every part of it that loads, mixes or packs'
        )
    provenance, tensor = boxes.provenance, boxes.tensor
    whole = move_boxes(provenance.source_boxes, provenance.matrices)
    record = InstanceRecord(
        # Copies, since other replicas may hold the same provenance.
        source_ids=torch.from_numpy(provenance.source_ids.copy()),
        source_matrices=torch.from_numpy(provenance.matrices.copy()),
        visibility=torch.from_numpy(visible_fraction(tensor.numpy(), whole, shape)),
        cut_sides=torch.from_numpy(
            cut_sides(tensor.numpy(), whole, provenance.matrices, provenance.from_masks)
        ),
        source_boxes=torch.from_numpy(provenance.source_boxes.astype(np.float32)),
    )
    return dict(instances.items(), bboxes=HorizontalBoxes(tensor, clone=False), **vars(record))
