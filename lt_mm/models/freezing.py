"""``Frozen``: a part of a stock model that training leaves as it is.

A frozen module *is* the stock module: :class:`Frozen` builds it with the stock registry
and adds a mixin to that instance (see :mod:`lt_mm.models.mixins`), so names, state
dicts and predictions are those of the stock module, and ``load_from`` fills it.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lt_mm.models.mixins import InstanceMixin, build_stock, mix_in
from lt_mm.registry import MODELS, register


@register(MODELS)
class Frozen:
    """Builds a stock module whose parameters and statistics do not change.

    In the place of a stock ``backbone``, ``neck``, ``rpn_head`` or any other part::

        model = dict(
            neck=dict(_delete_=True, type='lt_mm.Frozen', module=_base_.model.neck))

    Its parameters have ``requires_grad=False`` from the start, so optimisers get no
    gradient to step or decay by, and ``DistributedDataParallel`` does not wait for
    them. It stays in eval mode when the model is put into train mode: running
    statistics of batch normalisation do not move, dropout is off. Parts of the model
    in front of it still receive gradient through it.

    Initialisation (``init_cfg``, ``load_from``, resuming) writes into it as into the
    stock module. Without pretrained weights it stays random, and so do its predictions.

    Args:
        module: Config of the stock module (or a built one).
        parts: Names of its submodules to freeze, such as ``['conv1', 'layer1']`` of a
            ResNet; the rest trains. By default all of it is frozen.
        **overrides: Further arguments, which the stock detectors add to their heads
            (``train_cfg``, ``test_cfg``, ``num_classes``); go to the stock module.

    Returns:
        The stock module, an instance of a subclass of its class.

    Raises:
        ValueError: If it has no submodule of a name in ``parts``.
        TypeError: If the module is built already and there are overrides, or if it has
            been frozen already.
    """

    def __new__(cls, module: Any, parts: Sequence[str] | None = None, **overrides: Any) -> Any:
        return freeze(build_stock(module, overrides), parts)


class FrozenMixin(InstanceMixin):
    """Mixin of a frozen module.

    Attributes:
        frozen_parts: Names of the frozen submodules; None where all of it is frozen.
    """

    prefix = 'Frozen'
    frozen_parts: tuple[str, ...] | None

    def train(self, mode: bool = True) -> nn.Module:
        """Sets the mode of what is not frozen; the rest stays in eval mode."""
        super().train(mode and self.frozen_parts is not None)
        for name in self.frozen_parts or ():
            self.get_submodule(name).eval()
        return self


def freeze(module: Any, parts: Sequence[str] | None = None) -> nn.Module:
    """Freezes a built module in place and returns it; arguments as of :class:`Frozen`."""
    frozen = [module] if parts is None else [_part(module, name) for name in parts]
    mix_in(FrozenMixin, module)
    module.frozen_parts = None if parts is None else tuple(parts)
    for part in frozen:
        part.requires_grad_(False)
    module.train(module.training)
    return module


def _part(module: nn.Module, name: str) -> nn.Module:
    named = dict(module.named_modules())
    if not name or name not in named:
        raise ValueError(
            f'parts names {name!r}, which {type(module).__name__} has not; expected '
            'submodules, such as '
            f'{", ".join(child for child, _ in module.named_children())}. Leave parts '
            'out to freeze all of it'
        )
    return named[name]
