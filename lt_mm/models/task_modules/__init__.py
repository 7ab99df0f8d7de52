"""Parts of detectors that are neither backbone nor head."""

from lt_mm.models.task_modules.torchvision_anchors import TorchvisionAnchorGenerator

__all__ = ['TorchvisionAnchorGenerator']
