"""Images as a camera shows them that moves slowly."""

from lt_mm.datasets.frames.pan_zoom_dataset import PanZoomDataset

__all__ = ['PanZoomDataset']
