"""Adding behaviour to one built object of a stock framework.

:func:`mix_in` gives an instance a class that derives from a mixin and from the instance's
own class, the way ``torch.distributed.fsdp.fully_shard`` and
``torch.nn.utils.parametrize`` do. Parameter names, state dicts and ``isinstance`` stay
those of the stock object by construction, and the mixin's methods are also the ones that
the object's own code calls. Nothing but that one instance changes.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
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
        overrides: Arguments beside that config, such as those that the stock detectors add
            to a part. A dict without a type is merged into the part of the config that has
            its name, as a child config is; anything else takes its place.

    Raises:
        TypeError: If the module takes no argument of a name, or is built already and there
            are overrides.
    """
    if not isinstance(module, nn.Module):
        _check_arguments(module, overrides)
        config = dict(module)
        for name, value in overrides.items():
            config[name] = _merged(config.get(name), value)
        return MODELS.build(config)
    if overrides:
        raise TypeError(
            f'{type(module).__name__} is built already, so the arguments '
            f'{sorted(overrides)} cannot reach it; pass its config'
        )
    return module


def _check_arguments(config: dict[str, Any], overrides: dict[str, Any]) -> None:
    cls = config['type']
    if not isinstance(cls, type):
        with MODELS.switch_scope_and_registry(None) as registry:
            cls = registry.get(cls)
    if cls is None or inspect.isfunction(cls.__new__):
        # The registry's own error names what there is; a wrapper hands arguments on.
        return
    constructors = [each.__init__ for each in cls.__mro__ if inspect.isfunction(each.__init__)]
    taken = {name for each in constructors for name in inspect.signature(each).parameters}
    unknown = sorted(set(overrides) - taken - set(config))
    if unknown:
        raise TypeError(
            f'{", ".join(unknown)} stands beside the config of a {cls.__name__}, which takes no '
            'argument of this name, and is no option of the wrapper either; expected one of '
            'the options in its documentation, spelled as there'
        )


def _merged(present: Any, value: Any) -> Any:
    """The value for a key of a config that has one already."""
    both = isinstance(present, dict) and isinstance(value, dict)
    if not both or 'type' not in present or 'type' in value:
        return value
    merged = Config(dict(part=present))
    merged.merge_from_dict(dict(part=value))
    return merged.part


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


def stock_class(instance: Any) -> type:
    """The class that an object had before any mixin."""
    return instance._stock if isinstance(instance, InstanceMixin) else type(instance)


@functools.cache
def _class_with(mixins: tuple[type[InstanceMixin], ...], stock: type) -> type:
    name = ''.join(mixin.prefix for mixin in mixins) + stock.__name__
    return type(name, (*mixins, stock), dict(_mixins=mixins, _stock=stock))


def _make_again(mixins: tuple[type[InstanceMixin], ...], function: Callable, args: tuple) -> Any:
    made = function(*args)
    stock: Any = type(made)
    made.__class__ = _class_with(mixins, stock)
    return made
