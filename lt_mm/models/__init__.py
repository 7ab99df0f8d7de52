"""What ``model = dict(...)`` of a config names: wrapped heads, and parts beside them."""

from lt_mm.models.backbones import CifarDenseNet, CifarResNet, NASNetMobile, TorchvisionBackbone
from lt_mm.models.batch_augments import (
    Cutout,
    GroupedClsDataPreprocessor,
    GroupedCutMix,
    GroupedMixup,
)
from lt_mm.models.freezing import Frozen
from lt_mm.models.heads import LossTransformHead, SourceTrackingSampler, SupConHead
from lt_mm.models.recorded_augments import RecordingDetDataPreprocessor
from lt_mm.models.task_modules import TorchvisionAnchorGenerator

__all__ = [
    'CifarDenseNet',
    'CifarResNet',
    'Cutout',
    'Frozen',
    'GroupedClsDataPreprocessor',
    'GroupedCutMix',
    'GroupedMixup',
    'LossTransformHead',
    'NASNetMobile',
    'RecordingDetDataPreprocessor',
    'SourceTrackingSampler',
    'SupConHead',
    'TorchvisionAnchorGenerator',
    'TorchvisionBackbone',
]
