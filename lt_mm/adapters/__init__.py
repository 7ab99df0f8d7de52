"""What connects the mathematics to MMEngine, MMDetection and MMPretrain.

The only place that imports the frameworks. Importing it registers the classes.
"""
from lt_mm.adapters.pipeline import InvertiblePipeline
from lt_mm.adapters.sampler import (GroupedRepeatAugSampler,
                                    InfiniteGroupedRepeatAugSampler)

__all__ = [
    'GroupedRepeatAugSampler', 'InfiniteGroupedRepeatAugSampler', 'InvertiblePipeline'
]
