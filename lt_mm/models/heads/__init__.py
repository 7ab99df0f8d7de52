"""``LossTransformHead`` and what it adds to each family of stock heads."""

from lt_mm.models.heads.base import ConsistencyMixin
from lt_mm.models.heads.candidates import Detections
from lt_mm.models.heads.detections import DetectionConsistency
from lt_mm.models.heads.families import (
    AnchorConsistency,
    Assigned,
    ClsConsistency,
    DenseConsistency,
    SourceTrackingSampler,
)
from lt_mm.models.heads.head_families import register_head_family
from lt_mm.models.heads.loss_transform_head import LossTransformHead, wrap_head
from lt_mm.models.heads.options import ConsistencyOptions
from lt_mm.models.heads.supcon_head import SupConHead

__all__ = [
    'AnchorConsistency',
    'Assigned',
    'ClsConsistency',
    'ConsistencyMixin',
    'ConsistencyOptions',
    'DenseConsistency',
    'DetectionConsistency',
    'Detections',
    'LossTransformHead',
    'SourceTrackingSampler',
    'SupConHead',
    'register_head_family',
    'wrap_head',
]
