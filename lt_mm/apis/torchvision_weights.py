"""State dicts of torchvision's V1 weights, renamed for MMDetection and MMPretrain.

:data:`~lt_mm.apis.torchvision_layers.ARCHITECTURES` lists every module with parameters of
each supported model. So all keys are known beforehand, and a state dict of another model
is refused instead of converted in part. The stock models give torchvision's outputs if
they are configured as in ``configs/_base_/models/*_tv.py`` and
``configs/imagenet/*_ft.py``.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lt_mm.apis.torchvision_layers import ARCHITECTURES, COUNTER, Architecture

StateDict = dict[str, Tensor]

_NUM_COCO_LOGITS = 91
_NOT_IN_COCO = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
# Category ids of COCO's 80 classes in the order of the annotation files, which is the
# order of mmdet's CocoDataset. torchvision has a logit for each id from 0 to 90.
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _NOT_IN_COCO)


class WrongModelError(ValueError):
    """The state dict is not one of the model that was named."""


def convert(model: str, state_dict: Mapping[str, Tensor]) -> StateDict:
    """Converts a state dict of torchvision to one of the stock MM model.

    Detectors with 91 logits have one for each of COCO's category ids. The 80 that exist
    are kept, in the order of mmdet's ``CocoDataset``. (A softmax over them equals
    torchvision's except for the probability of the ids that no annotation has.) With
    another number of logits, classes keep their order. Background moves from the first
    place to the last.

    Args:
        model: A name of :data:`ARCHITECTURES`, as in ``torchvision.models``.
        state_dict: State dict of the torchvision model, with the names of any release.

    Returns:
        All parameters and buffers of the stock model. Tensors are shared with the
        input, except those that are reordered. The counters of batches, which frozen
        batch normalisations lack, are 0.

    Raises:
        ValueError: If the model is unknown.
        WrongModelError: If keys or shapes are those of another model.
    """
    if model not in ARCHITECTURES:
        raise ValueError(
            f'model {model!r} has no converter; expected one of ' + ', '.join(sorted(ARCHITECTURES))
        )
    architecture = ARCHITECTURES[model]
    found = {_current_name(key, architecture.old_names): value for key, value in state_dict.items()}
    _check(model, architecture, found)
    converted = {}
    for layer in architecture.layers:
        pick = _row_picker(layer.rows, architecture, found)
        for source, target in layer.names():
            value = found.get(source)
            converted[target] = torch.tensor(0) if value is None else pick(value)
    return converted


def convert_file(model: str, source: str, target: str) -> None:
    """Converts a file of torchvision to a checkpoint for ``load_from``.

    The checkpoint can also be given to ``init_cfg=dict(type='Pretrained', checkpoint=target)``
    of the model, or of its backbone with ``prefix='backbone.'``.

    Args:
        model: See :func:`convert`.
        source: A state dict, or a checkpoint of torchvision's reference scripts
            (state dict under 'model'). Loaded with ``weights_only=True``.
        target: File to write: ``{'meta': ..., 'state_dict': ...}``.

    Raises:
        ValueError: See :func:`convert`.
    """
    loaded = torch.load(source, map_location='cpu', weights_only=True)
    for key in ('model', 'state_dict'):
        if isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    torch.save(
        {'meta': {'converted_from': f'torchvision {model}'}, 'state_dict': convert(model, loaded)},
        target,
    )


def _current_name(key: str, old_names: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in old_names:
        key = re.sub(pattern, replacement, key)
    return key


def _check(model: str, architecture: Architecture, found: Mapping[str, Tensor]) -> None:
    expected = {source for layer in architecture.layers for source, _ in layer.names()}
    missing = sorted(key for key in expected - set(found) if not key.endswith(COUNTER))
    unexpected = sorted(set(found) - expected)
    if missing or unexpected:
        raise WrongModelError(
            f'the state dict is not one of {model}: of {len(expected)} expected keys '
            f'{len(missing)} are missing ({_briefly(missing)}); of {len(found)} found '
            f'keys {len(unexpected)} are unexpected ({_briefly(unexpected)}). Name the '
            f'model that it belongs to: {", ".join(sorted(ARCHITECTURES))}'
        )
    for key, shape in architecture.shapes.items():
        if tuple(found[key].shape) != shape:
            raise WrongModelError(
                f'the state dict is not one of {model}, although its keys are: expected '
                f'{key} of shape {shape}, found {tuple(found[key].shape)}'
            )


def _briefly(keys: Sequence[str], count: int = 8) -> str:
    more = ', ...' if len(keys) > count else ''
    return ', '.join(keys[:count]) + more or 'none'


def _row_picker(
    rows: str, architecture: Architecture, found: Mapping[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    if rows == 'keep':
        return lambda value: value
    anchors = architecture.anchors
    num_logits = len(found[architecture.logits]) // anchors
    classes = list(range(1, num_logits))
    if num_logits == _NUM_COCO_LOGITS:
        classes = list(COCO_CATEGORY_IDS)
    if rows == 'background_first':
        classes = classes + [0]
    groups = {'boxes': (num_logits, 4), 'anchors': (anchors, num_logits)}

    def pick(value: Tensor) -> Tensor:
        if rows not in groups:
            return value[classes]
        each = value.unflatten(0, groups[rows])
        picked = each[:, classes] if rows == 'anchors' else each[classes]
        return picked.flatten(0, 1)

    return pick
