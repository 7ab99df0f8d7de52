"""What travels from the pipeline to the heads: the record of a replica, and its errors."""

from lt_mm.structures.errors import (
    LostRecordError,
    MissingRecordError,
    UnpairedBatchError,
    UnsupportedHeadError,
)
from lt_mm.structures.pair_record import PairRecord
from lt_mm.structures.record import AppliedTransform, ImageRecord, InstanceRecord, Origin
from lt_mm.structures.recorded_boxes import RecordedBoxes
from lt_mm.structures.recorded_instances import RecordedInstances

__all__ = [
    'AppliedTransform',
    'ImageRecord',
    'InstanceRecord',
    'LostRecordError',
    'MissingRecordError',
    'Origin',
    'PairRecord',
    'RecordedBoxes',
    'RecordedInstances',
    'UnpairedBatchError',
    'UnsupportedHeadError',
]
