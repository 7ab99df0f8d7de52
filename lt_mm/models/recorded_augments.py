"""Batch augments of MMDetection that move images after the pipeline, recorded.

They resize the images of a batch in the data preprocessor, and the boxes with them.
:func:`record_batch_augments` has each of them move the matrices of the record as well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmdet.models.data_preprocessors import (
    BatchFixedSizePad,
    BatchResize,
    BatchSyncRandomResize,
    DetDataPreprocessor,
)
from torch import Tensor, nn

from lt_mm.models.mixins import InstanceMixin, mix_in, stock_class
from lt_mm.registry import MODELS, register
from lt_mm.structures.errors import LostRecordError
from lt_mm.structures.record import move_record

_Shape = tuple[int, int]

# From the shapes (height, width) of a batch before and after an augment to the (x, y) scale
# by which it moves boxes.
_SCALES: dict[type[nn.Module], Callable[[Any, _Shape, _Shape], tuple[float, float]]] = {
    BatchFixedSizePad: lambda augment, before, after: (1.0, 1.0),
    BatchResize: lambda augment, before, after: (augment.get_target_size(*before)[2],) * 2,
    BatchSyncRandomResize: lambda augment, before, after: (
        after[1] / before[1],
        after[0] / before[0],
    ),
}


class _RecordingAugment(InstanceMixin):
    """Moves the record of a batch as the augment moves its boxes."""

    prefix = 'Recording'

    def forward(self, inputs: Tensor, data_samples: list[Any] | None) -> Any:
        """Augments a batch; see the stock class."""
        before = _size_of(inputs)
        inputs, data_samples = super().forward(inputs, data_samples)
        scale = _scale_of(self)(self, before, _size_of(inputs))
        for sample in data_samples or () if scale != (1.0, 1.0) else ():
            if 'source_id' in sample:
                move_record(sample, np.diag([*scale, 1.0]), stock_class(self).__name__)
        return inputs, data_samples


@register(MODELS)
class RecordingDetDataPreprocessor(DetDataPreprocessor):
    """The stock ``DetDataPreprocessor``, whose batch augments move the record too.

    Takes the stock arguments. ``tools/train.py`` does the same to the stock preprocessor of a
    model; with the stock tools it takes this type in its place:
    ``model = dict(data_preprocessor=dict(type='lt_mm.RecordingDetDataPreprocessor'))``.

    Raises:
        LostRecordError: If an augment cannot be recorded; see :func:`record_batch_augments`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        record_batch_augments(self.batch_augments)


def record_batch_augments(augments: Sequence[nn.Module] | nn.ModuleList | None) -> None:
    """Has batch augments move the records of the samples, in place.

    Known are ``BatchSyncRandomResize``, ``BatchResize`` and ``BatchFixedSizePad``, not their
    subclasses. An augment of your own is recorded if it has a method ``box_scale(before, after)``
    that gives the (x, y) scale of the boxes for the (height, width) of the batch before and after.

    Args:
        augments: Those of a built preprocessor of MMDetection; None for none.

    Raises:
        LostRecordError: If nothing tells how one of them moves boxes.
    """
    for augment in augments if augments is not None else ():
        if not isinstance(augment, _RecordingAugment):
            _scale_of(augment)
            mix_in(_RecordingAugment, augment)


def _size_of(inputs: Tensor) -> _Shape:
    return inputs.shape[-2], inputs.shape[-1]


def _scale_of(augment: Any) -> Callable[[Any, _Shape, _Shape], tuple[float, float]]:
    cls: Any = stock_class(augment)
    if hasattr(cls, 'box_scale'):
        return cls.box_scale
    if cls not in _SCALES:
        known = ', '.join(sorted(each.__name__ for each in _SCALES))
        raise LostRecordError(
            f'nothing tells how the batch augment {cls.__name__} moves boxes; expected one of '
            f'{known}, or a class with a method box_scale(before, after). Remove it from '
            'model.data_preprocessor.batch_augments and augment in the pipeline, such as '
            "dict(type='RandomResize', ...), or give it this method"
        )
    return _SCALES[cls]
