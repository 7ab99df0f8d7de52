"""Registries of the scope ``lt_mm``.

``type='lt_mm.X'`` is found from any default scope: MMEngine imports this module when it
meets the prefix, and then the locations named below. Every class is also added to
MMEngine's root registry, so that after ``custom_imports=dict(imports=['lt_mm'])`` the bare
name ``type='X'`` resolves from the scopes ``mmdet`` and ``mmpretrain``, which search their
own classes and then the root. Only MMPretrain has batch augments, so its registry of them
serves as their root.
"""

from collections.abc import Callable
from typing import TypeVar

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry
from mmpretrain import registry as mmpretrain_registry

_SCOPE = 'lt_mm'
_LOCATIONS = ['lt_mm']
_Class = TypeVar('_Class', bound=type)


def _child_of(root: Registry) -> Registry:
    return Registry(root.name, parent=root, scope=_SCOPE, locations=_LOCATIONS)


BATCH_AUGMENTS = _child_of(mmpretrain_registry.BATCH_AUGMENTS)
DATA_SAMPLERS = _child_of(mmengine_registry.DATA_SAMPLERS)
DATASETS = _child_of(mmengine_registry.DATASETS)
HOOKS = _child_of(mmengine_registry.HOOKS)
LOOPS = _child_of(mmengine_registry.LOOPS)
METRICS = _child_of(mmengine_registry.METRICS)
MODELS = _child_of(mmengine_registry.MODELS)
TASK_UTILS = _child_of(mmengine_registry.TASK_UTILS)
TRANSFORMS = _child_of(mmengine_registry.TRANSFORMS)


def register(registry: Registry) -> Callable[[_Class], _Class]:
    """Returns a decorator that registers a class in the scope ``lt_mm`` and at the root.

    Args:
        registry: One of the registries of this module.
    """

    def decorator(cls: _Class) -> _Class:
        registry.register_module(module=cls)
        registry.parent.register_module(module=cls)
        return cls

    return decorator
