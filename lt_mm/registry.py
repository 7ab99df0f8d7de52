"""Registries of the scope ``lt_mm``.

``type='lt_mm.X'`` is found from any default scope: MMEngine imports this module when it
meets the prefix, and then the locations named below. Every class is also added to
MMEngine's root registry, so that after ``custom_imports=dict(imports=['lt_mm'])`` the bare
name ``type='X'`` resolves from the scopes ``mmdet`` and ``mmpretrain``, which search their
own classes and then the root. Only MMPretrain has batch augments, so its registry of them
serves as their root.

A config may name a class in many forms. :func:`class_of` and :func:`builds` say which class it is,
and are used wherever this package looks at the configs of others.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mmengine import registry as mmengine_registry
from mmengine.config.lazy import LazyAttr, LazyObject
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


def class_of(kind: Any, registry: Registry, scope: str | None = None) -> Any:
    """What MMEngine builds a config with, from the ``type`` in it.

    Args:
        kind: The type: a name with or without a scope, the full path of a class, a class, or what
            stands for one in a pure Python config.
        registry: Where names are looked up.
        scope: The scope of bare names; by default the current default scope of MMEngine.

    Returns:
        A class or a function; None if there is none of this name.
    """
    if isinstance(kind, (LazyAttr, LazyObject)):
        return kind.build()
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(scope) as found:
        try:
            return found.get(kind)
        except RuntimeError:  # of a module that cannot be imported
            return None


def name_of(kind: Any) -> str:
    """The bare name of what a config names as a type: a class, or a string with a scope or path."""
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def builds(config: Any, cls: type, registry: Registry, scope: str | None = None) -> bool:
    """Whether a config builds an instance of a class, or is one.

    Args:
        config: A config, or a built object.
        cls: The class; its subclasses count too.
        registry: As in :func:`class_of`.
        scope: As in :func:`class_of`.
    """
    if not isinstance(config, dict):
        return isinstance(config, cls)
    found = class_of(config.get('type'), registry, scope)
    return isinstance(found, type) and issubclass(found, cls)


def configs_of(
    node: Any, cls: type, registry: Registry, scope: str | None = None
) -> Iterator[dict[str, Any]]:
    """The configs of a class, anywhere below a config.

    Args:
        node: A config, or a list of configs.
        cls: As in :func:`builds`.
        registry: As in :func:`class_of`.
        scope: As in :func:`class_of`.
    """
    if isinstance(node, dict):
        if builds(node, cls, registry, scope):
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from configs_of(value, cls, registry, scope)
