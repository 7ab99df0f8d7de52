"""Samplers that keep the replicas of a source together."""

from lt_mm.datasets.samplers.repeat_aug import (
    GroupedRepeatAugSampler,
    InfiniteGroupedRepeatAugSampler,
)

__all__ = ['GroupedRepeatAugSampler', 'InfiniteGroupedRepeatAugSampler']
