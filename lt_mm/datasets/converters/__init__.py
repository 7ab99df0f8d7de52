"""Data sets that the project makes or converts, as COCO json; no MM framework is needed."""

from lt_mm.datasets.converters.bccd import BCCD_CLASSES, convert_bccd
from lt_mm.datasets.converters.coco_json import CocoSplit
from lt_mm.datasets.converters.pennfudan import PENNFUDAN_CLASSES, convert_pennfudan, split_names
from lt_mm.datasets.converters.shapes import SHAPES_CLASSES, write_shapes_dataset
from lt_mm.datasets.converters.voc2012 import VOC_CLASSES, VocSplit, convert_voc2012

__all__ = [
    'BCCD_CLASSES',
    'PENNFUDAN_CLASSES',
    'SHAPES_CLASSES',
    'VOC_CLASSES',
    'CocoSplit',
    'VocSplit',
    'convert_bccd',
    'convert_pennfudan',
    'convert_voc2012',
    'split_names',
    'write_shapes_dataset',
]
