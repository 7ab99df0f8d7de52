"""The invertible pipeline, a part a module.

=====================  ============================================================
invertible_pipeline    runs the stock transforms on a sample
stock_transforms       what is known of stock transforms
samples                what a sample tells of its source
image_loading          loads images, and finds those that cannot be used
annotation_cleaning    drops annotations that cannot be used
shared_loading         loads a source once for all its replicas
stand_ins              replaces sources that cannot be used
mixing                 hands images to the transforms that mix them
box_record             starts the record of boxes, and checks that it is kept
applied_transforms     lists what the transforms did
packing                writes the record into data samples
=====================  ============================================================
"""

from lt_mm.datasets.transforms.image_loading import BadImageError
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline

__all__ = ['BadImageError', 'InvertiblePipeline']
