"""Replicas of the source images: the pipeline that records, the samplers that repeat."""

from lt_mm.datasets.altered import PanZoomDataset
from lt_mm.datasets.labelled_and_unlabelled import LabelledAndUnlabelled
from lt_mm.datasets.replica_dataset import ReplicaDataset
from lt_mm.datasets.samplers import GroupedRepeatAugSampler, InfiniteGroupedRepeatAugSampler
from lt_mm.datasets.transforms import InvertiblePipeline
from lt_mm.datasets.weak_copies import WithWeakCopies

__all__ = [
    'GroupedRepeatAugSampler',
    'InfiniteGroupedRepeatAugSampler',
    'InvertiblePipeline',
    'LabelledAndUnlabelled',
    'PanZoomDataset',
    'ReplicaDataset',
    'WithWeakCopies',
]
