"""The invertible pipeline; each module is one part of it."""

from lt_mm.datasets.transforms.image_loading import BadImageError
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline

__all__ = ['BadImageError', 'InvertiblePipeline']
