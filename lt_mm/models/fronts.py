"""Adding behaviour to one built module of a stock framework.

A *front* is a class that is put before the module's own: the instance gets a class
that derives from both, the way ``torch.distributed.fsdp.fully_shard`` and
``torch.nn.utils.parametrize`` do. Parameter names, state dicts and ``isinstance`` stay
those of the stock module by construction, and the front's methods are also the ones
that the module's own code calls. Nothing but that one instance changes.
"""

import functools
from typing import Any

from torch import nn

from lt_mm.registry import MODELS


class Front:
    """Base of all fronts; copies and pickles of a fronted module are fronted too."""

    def __reduce__(self):
        # The class is made at run time, so pickle and deepcopy make it again.
        front, stock = type(self).__bases__
        return _new_instance, (front, stock), self.__dict__


def build_stock(module: Any, overrides: dict[str, Any]) -> nn.Module:
    """The stock module that is to get a front.

    Args:
        module: Its config, or a built one.
        overrides: Arguments that the stock detectors add to the config of a part.

    Raises:
        TypeError: If the module is built already and there are overrides.
    """
    if not isinstance(module, nn.Module):
        return MODELS.build({**module, **overrides})
    if overrides:
        raise TypeError(
            f'{type(module).__name__} is built already, so the arguments '
            f'{sorted(overrides)} cannot reach it; pass its config'
        )
    return module


def put_in_front(front: type[Front], module: nn.Module) -> nn.Module:
    """Gives a built module a class with ``front`` before its own; returns it.

    Args:
        front: Its methods override the module's and reach them by ``super()``.
        module: Modified in place. Its class must not have a front already.
    """
    if isinstance(module, Front):
        raise TypeError(
            f'{type(module).__name__} has a front already; expected a stock '
            'module. Wrap it once only'
        )
    module.__class__ = _class_with(front, type(module))
    return module


@functools.cache
def _class_with(front: type, stock: type) -> type:
    return type(f'{front.prefix}{stock.__name__}', (front, stock), {})


def _new_instance(front: type, stock: type) -> nn.Module:
    cls = _class_with(front, stock)
    return cls.__new__(cls)
