"""``LossTransformHead`` and what it adds to each family of stock heads."""

# Each of these registers the heads that it wraps.
from lt_mm.models.heads import cls_heads, dense_heads
from lt_mm.models.heads.loss_transform_head import LossTransformHead
from lt_mm.models.heads.roi_heads import SourceTrackingSampler
from lt_mm.models.heads.supcon_head import SupConHead

__all__ = ['LossTransformHead', 'SourceTrackingSampler', 'SupConHead', 'cls_heads', 'dense_heads']
