"""The families of stock heads, each with what differs from the others."""

from lt_mm.models.heads.families.anchor_heads import (
    AnchorConsistency,
    ATSSConsistency,
    GFLConsistency,
    RPNConsistency,
)
from lt_mm.models.heads.families.chosen_heads import PAAConsistency
from lt_mm.models.heads.families.cls_head import ClsConsistency, MultiTaskConsistency
from lt_mm.models.heads.families.dense_base import Assigned, DenseConsistency
from lt_mm.models.heads.families.detr_heads import DETRConsistency
from lt_mm.models.heads.families.mask_head import MaskConsistency
from lt_mm.models.heads.families.mask_queries import MaskFormerConsistency
from lt_mm.models.heads.families.point_heads import (
    FCOSConsistency,
    RTMDetConsistency,
    YOLOXConsistency,
)
from lt_mm.models.heads.families.roi_heads import (
    BBoxConsistency,
    CascadeConsistency,
    RoIConsistency,
)
from lt_mm.models.heads.families.roi_sampler import SourceTrackingSampler
from lt_mm.models.heads.families.text_heads import PhraseConsistency

__all__ = [
    'ATSSConsistency',
    'AnchorConsistency',
    'Assigned',
    'BBoxConsistency',
    'CascadeConsistency',
    'ClsConsistency',
    'DETRConsistency',
    'DenseConsistency',
    'FCOSConsistency',
    'GFLConsistency',
    'MaskConsistency',
    'MaskFormerConsistency',
    'MultiTaskConsistency',
    'PAAConsistency',
    'PhraseConsistency',
    'RPNConsistency',
    'RTMDetConsistency',
    'RoIConsistency',
    'SourceTrackingSampler',
    'YOLOXConsistency',
]
