"""Images that are altered right after loading, as a camera, noise or the weather would do it."""

from lt_mm.datasets.altered.pan_zoom_dataset import PanZoomDataset

__all__ = ['PanZoomDataset']
