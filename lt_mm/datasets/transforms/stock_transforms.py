"""What is known of stock transforms, by their names or classes."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmcv.transforms import Resize as ResizeImage
from mmdet.datasets.transforms import (
    FixScaleResize,
    FixShapeResize,
    LoadEmptyAnnotations,
    LoadImageFromNDArray,
    LoadMultiChannelImageFromFiles,
    LoadPanopticAnnotations,
    LoadProposals,
    Resize,
)
from mmdet.datasets.transforms import LoadAnnotations as LoadDetectionAnnotations

# They move no pixel but rebuild the boxes from numbers.
IMAGE_ONLY = frozenset(['RandomErasing'])

# They draw nothing at random, so that the replicas of a source can share what they give.
# Subclasses with methods of their own may draw.
_DETERMINISTIC = (
    LoadImageFromFile,
    LoadImageFromNDArray,
    LoadMultiChannelImageFromFiles,
    LoadAnnotations,
    LoadDetectionAnnotations,
    LoadPanopticAnnotations,
    LoadProposals,
    LoadEmptyAnnotations,
    ResizeImage,
    Resize,
    FixScaleResize,
    FixShapeResize,
)

# They treat an image without boxes like any other: they either call the box type's method
# on the empty set or move no pixel. Every other transform may move the pixels of such an
# image unrecorded, so the matrix of the image is unknown after it.
_RECORDED_WITHOUT_BOXES = """
Resize RandomResize RandomChoiceResize FixScaleResize FixShapeResize ResizeShortestEdge RandomFlip
RandomShift RandomCrop Expand Pad Rotate ShearX ShearY TranslateX TranslateY AutoAugment
RandAugment RandomApply RandomChoice RandomOrder Compose PhotoMetricDistortion YOLOXHSVRandomAug
AutoContrast Brightness Color ColorTransform Contrast Equalize Invert Posterize Sharpness Solarize
SolarizeAdd CutOut RandomErasing Corrupt FilterAnnotations Normalize RandomGrayscale ImageToTensor
ToTensor
"""


def name_of(transform: Callable) -> str:
    """The class of a transform."""
    return type(transform).__name__


def loads(transform: Callable) -> bool:
    """Whether a transform loads: what it gives is the source, to the record."""
    return type(transform).__name__.startswith('Load')


def loads_boxes(transform: Callable) -> bool:
    """Whether a transform loads axis-aligned boxes; others are refused later."""
    return (
        loads(transform)
        and getattr(transform, 'with_bbox', False)
        and getattr(transform, 'box_type', 'hbox') in ('hbox', None)
    )


def can_be_shared(transform: Callable, declared: Collection[str] = ()) -> bool:
    """Whether a transform is known to give the same for every replica of a source.

    Args:
        transform: The transform.
        declared: Names of further classes that draw nothing at random.
    """
    if name_of(transform) in declared:
        return True
    for kind in type(transform).__mro__:
        if kind in _DETERMINISTIC:
            return True
        if _has_methods(kind):
            return False
    return False


def _has_methods(kind: type) -> bool:
    """Whether a class defines more than other default arguments."""
    return any(
        inspect.isroutine(value) or isinstance(value, property)
        for name, value in vars(kind).items()
        if name not in ('__init__', '__repr__')
    )


def records_without_boxes(transform: Any) -> bool:
    """Whether the record of an image without boxes is true after a transform."""
    nested = getattr(transform, 'transforms', ())
    known = loads(transform) or name_of(transform) in _RECORDED_WITHOUT_BOXES.split()
    # RandomApply holds a Compose, RandomChoice a list of them: both can be walked.
    return known and all(records_without_boxes(inner) for inner in nested)
