"""What connects the mathematics to MMEngine, MMDetection and MMPretrain.

The only place that imports the frameworks. Importing it registers the classes.
"""
from lt_mm.adapters import cls_heads
from lt_mm.adapters.head import LossTransformHead
from lt_mm.adapters.pipeline import InvertiblePipeline
from lt_mm.adapters.roi_heads import SourceTrackingSampler
from lt_mm.adapters.sampler import (GroupedRepeatAugSampler,
                                    InfiniteGroupedRepeatAugSampler)

__all__ = [
    'GroupedRepeatAugSampler', 'InfiniteGroupedRepeatAugSampler', 'InvertiblePipeline',
    'LossTransformHead', 'SourceTrackingSampler', 'cls_heads'
]
