"""Adding behaviour to one built object of a stock framework.

:func:`mix_in` gives an instance a class that derives from a mixin and from the instance's
own class, the way ``torch.distributed.fsdp.fully_shard`` and
``torch.nn.utils.parametrize`` do. Parameter names, state dicts and ``isinstance`` stay
those of the stock object by construction, and the mixin's methods are also the ones that
the object's own code calls. Nothing but that one instance changes.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from lt_mm.registry import MODELS

# A mixin has all that the stock object has, which no type checker can know.
if TYPE_CHECKING:
    _StockObject: Any
else:
    _StockObject = object


class InstanceMixin(_StockObject):
    """Base of the classes that :func:`mix_in` adds; copies and pickles keep them.

    Attributes:
        prefix: What the name of the instance's class begins with, for people.
    """

    prefix = 'Mixed'
    _mixins: tuple[type, ...]
    _stock: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so pickle and deepcopy make it again, around what
        # the stock class says of its own copies.
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):  # the name of a global, which is no copy
            return reduced
        function, args, *state = reduced
        cls, stock = type(self), self._stock
        function = stock if function is cls else function
        args = tuple(stock if argument is cls else argument for argument in args)
        return _make_again, (self._mixins, function, args), *state


def build_stock(module: Any, overrides: dict[str, Any]) -> nn.Module:
    """The stock module that is to get a mixin.

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


def mix_in(mixin: type[InstanceMixin], instance: Any) -> Any:
    """Gives an instance a class with ``mixin`` before its own; returns the instance.

    Args:
        mixin: Its methods override the instance's and reach them by ``super()``.
        instance: Modified in place. It may have other mixins already, which then lie
            between this one and the stock class.

    Raises:
        TypeError: If ``mixin`` does not derive from :class:`InstanceMixin`, or the
            instance has it already.
    """
    if not (isinstance(mixin, type) and issubclass(mixin, InstanceMixin)):
        raise TypeError(f'{mixin!r} is no InstanceMixin; derive it from that class')
    if isinstance(instance, mixin):
        raise TypeError(
            f'{type(instance).__name__} has {mixin.__name__} already; expected an object '
            'without it. Wrap it once only'
        )
    cls: Any = type(instance)
    mixins, stock = (cls._mixins, cls._stock) if isinstance(instance, InstanceMixin) else ((), cls)
    instance.__class__ = _class_with((mixin, *mixins), stock)
    return instance


@functools.cache
def _class_with(mixins: tuple[type[InstanceMixin], ...], stock: type) -> type:
    name = ''.join(mixin.prefix for mixin in mixins) + stock.__name__
    return type(name, (*mixins, stock), dict(_mixins=mixins, _stock=stock))


def _make_again(mixins: tuple[type[InstanceMixin], ...], function: Callable, args: tuple) -> Any:
    made = function(*args)
    stock: Any = type(made)
    made.__class__ = _class_with(mixins, stock)
    return made
