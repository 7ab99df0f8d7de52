"""What connects the mathematics to MMEngine, MMDetection and MMPretrain.

The only place that imports the frameworks. Importing it registers the classes.
"""
from lt_mm.adapters import cls_heads, dense_heads
from lt_mm.adapters.batch_augments import (Cutout, GroupedClsDataPreprocessor,
                                           GroupedCutMix, GroupedMixup)
from lt_mm.adapters.checkpoints import AtomicCheckpointHook
from lt_mm.adapters.cifar_backbones import CifarDenseNet, CifarResNet
from lt_mm.adapters.consistency_metric import ConsistencyMetric
from lt_mm.adapters.freezing import Frozen
from lt_mm.adapters.head import LossTransformHead
from lt_mm.adapters.micro_batches import (MicroBatchIterTrainLoop,
                                          MicroBatchTrainLoop)
from lt_mm.adapters.nasnet_mobile import NASNetMobile
from lt_mm.adapters.pair_pictures import PairVisualizationHook
from lt_mm.adapters.pipeline import InvertiblePipeline
from lt_mm.adapters.preemption import PreemptionHook
from lt_mm.adapters.replica_dataset import ReplicaDataset
from lt_mm.adapters.resuming import ResumeHook
from lt_mm.adapters.roi_heads import SourceTrackingSampler
from lt_mm.adapters.sampler import (GroupedRepeatAugSampler,
                                    InfiniteGroupedRepeatAugSampler)
from lt_mm.adapters.supcon_head import SupConHead
from lt_mm.adapters.torchvision_anchors import TorchvisionAnchorGenerator
from lt_mm.adapters.torchvision_backbone import TorchvisionBackbone

__all__ = [
    'AtomicCheckpointHook', 'CifarDenseNet', 'CifarResNet', 'ConsistencyMetric',
    'Cutout', 'Frozen', 'GroupedClsDataPreprocessor', 'GroupedCutMix', 'GroupedMixup',
    'GroupedRepeatAugSampler', 'InfiniteGroupedRepeatAugSampler',
    'InvertiblePipeline', 'LossTransformHead', 'MicroBatchIterTrainLoop',
    'MicroBatchTrainLoop', 'NASNetMobile', 'PairVisualizationHook', 'PreemptionHook',
    'ReplicaDataset', 'ResumeHook', 'SourceTrackingSampler', 'SupConHead',
    'TorchvisionAnchorGenerator', 'TorchvisionBackbone', 'cls_heads', 'dense_heads'
]
