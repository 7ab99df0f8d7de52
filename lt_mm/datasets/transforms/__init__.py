"""The invertible pipeline and its parts."""

from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline

__all__ = ['InvertiblePipeline']
