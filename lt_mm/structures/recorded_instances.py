"""Instances that are sent from data workers by value."""

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import InstanceData
from torch import Tensor


class RecordedInstances(InstanceData):
    """The instances of a replica, with their record.

    PyTorch sends every tensor between processes in shared memory of its own, which costs
    about as much as a flip of the image, however few numbers the tensor has. The few
    numbers of these instances are sent through the pipe instead. In all else, the class is
    the stock one; files and copies are made in the same way.
    """

    @classmethod
    def made_of(cls, fields: dict[str, Any], metainfo: dict[str, Any]) -> 'RecordedInstances':
        """Makes instances of fields of equal length and metainfo, without copies."""
        instances = cls()
        for name, value in fields.items():
            instances.set_field(value, name)
        for name, value in metainfo.items():
            instances.set_field(value, name, field_type='metainfo')
        return instances


def _reduce(instances: RecordedInstances) -> tuple[Callable, tuple[dict, ...]]:
    tensors, boxes, others = {}, {}, {}
    for name, value in instances.items():
        if _is_plain(value):
            tensors[name] = value.numpy()
        elif isinstance(value, BaseBoxes) and _is_plain(value.tensor):
            boxes[name] = type(value), value.tensor.numpy()
        else:
            others[name] = value
    return _rebuild, (tensors, boxes, others, dict(instances.metainfo_items()))


def _is_plain(value: Any) -> bool:
    """Whether a tensor can go through numpy without loss."""
    return (
        type(value) is Tensor
        and value.device.type == 'cpu'
        and not value.requires_grad
        and value.dtype != torch.bfloat16
    )


def _rebuild(
    tensors: dict[str, np.ndarray],
    boxes: dict[str, tuple[type[BaseBoxes], np.ndarray]],
    others: dict[str, Any],
    metainfo: dict[str, Any],
) -> RecordedInstances:
    fields = {name: torch.from_numpy(array) for name, array in tensors.items()}
    for name, (box_type, array) in boxes.items():
        fields[name] = box_type(torch.from_numpy(array), clone=False)
    return RecordedInstances.made_of({**fields, **others}, metainfo)


ForkingPickler.register(RecordedInstances, _reduce)
