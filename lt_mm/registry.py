"""Registries of the scope ``lt_mm``.

``type='lt_mm.X'`` is found from any default scope: MMEngine imports this module
when it meets the prefix and then the locations named below. Every class is also
put into MMEngine's root registry, so that after
``custom_imports=dict(imports=['lt_mm'])`` the bare name ``type='X'`` resolves from
the scopes ``mmdet`` and ``mmpretrain``, which search their own classes and then
the root. Batch augments exist in MMPretrain alone, whose registry of them is a root.
"""

from collections.abc import Callable
from typing import TypeVar

from mmengine.registry import DATA_SAMPLERS as ROOT_DATA_SAMPLERS
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import METRICS as ROOT_METRICS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import TASK_UTILS as ROOT_TASK_UTILS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry
from mmpretrain.registry import BATCH_AUGMENTS as MMPRETRAIN_BATCH_AUGMENTS

_SCOPE = 'lt_mm'
_LOCATIONS = ['lt_mm']
_Class = TypeVar('_Class', bound=type)


def _child_of(root: Registry) -> Registry:
    return Registry(root.name, parent=root, scope=_SCOPE, locations=_LOCATIONS)


BATCH_AUGMENTS = _child_of(MMPRETRAIN_BATCH_AUGMENTS)
DATA_SAMPLERS = _child_of(ROOT_DATA_SAMPLERS)
DATASETS = _child_of(ROOT_DATASETS)
HOOKS = _child_of(ROOT_HOOKS)
LOOPS = _child_of(ROOT_LOOPS)
METRICS = _child_of(ROOT_METRICS)
MODELS = _child_of(ROOT_MODELS)
TASK_UTILS = _child_of(ROOT_TASK_UTILS)
TRANSFORMS = _child_of(ROOT_TRANSFORMS)


def register(registry: Registry) -> Callable[[_Class], _Class]:
    """Decorator: registers a class under the scope ``lt_mm`` and at the root.

    Args:
        registry: One of the registries of this module.
    """

    def decorator(cls: _Class) -> _Class:
        registry.register_module(module=cls)
        registry.parent.register_module(module=cls)
        return cls

    return decorator
