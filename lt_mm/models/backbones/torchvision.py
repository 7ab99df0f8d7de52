"""torchvision's classifiers as backbones of MMDetection's detectors."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model, list_models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from lt_mm.registry import MODELS, register

# Without their auxiliary classifiers, which give a tuple in train mode; init_weights is
# torchvision's default; without naming it torchvision warns.
_NO_AUXILIARY = dict(aux_logits=False, init_weights=True)
_WITH_AUXILIARY = ('googlenet', 'inception_v3')
# Large enough that borders do not blur the stride of a network without padding.
_PROBE_SIZE = 16384


@register(MODELS)
class TorchvisionBackbone(BaseModule):
    """Feature maps of one of torchvision's classifiers, for a stock neck.

    ``dict(type='lt_mm.TorchvisionBackbone', name='resnet50', nodes=['layer1', 'layer2',
    'layer3', 'layer4'])`` gives what ``create_feature_extractor`` gives at these nodes,
    as a tuple. Layers behind the last node are no part of it. Parameter names are
    torchvision's own (``backbone.layer1.0.conv1.weight``).

    Initialisation is torchvision's own. ``init_cfg=dict(type='Pretrained',
    checkpoint='torchvision://resnet50')``, or a file, loads a torchvision state dict;
    the log names the keys of the tail, which has no place here.

    What a config has to say besides, ``neck.in_channels`` and the strides of anchors
    and RoI extractors, is in :attr:`out_channels` and :attr:`strides`::

        backbone = TorchvisionBackbone('densenet121', ['features.denseblock4'])
        print(backbone.out_channels, backbone.strides)  # (1024,) (32,)

    Args:
        name: Name of the model in ``torchvision.models.list_models()``.
        nodes: Names of modules or operations (``get_graph_node_names``), one for each
            feature map; a module stands for its output.
        weights: torchvision's name of pretrained weights ('IMAGENET1K_V1'), which it
            downloads whenever the backbone is built. None: random initialisation.
        norm_cfg: Normalisation layers as in stock backbones, such as ``dict(type='BN',
            requires_grad=False)``, for models whose builder takes ``norm_layer``
            (ResNets, EfficientNets, MobileNets). None keeps torchvision's.
        norm_eval: Whether batch normalisation stays in eval mode, as in stock backbones.
        norm_momentum: Momentum of all batch normalisation, the weight of a batch in the
            running statistics. None keeps torchvision's, which of MNASNet is 0.0003 and
            takes some 10,000 steps.
        options: Further arguments of torchvision's builder, such as
            ``dict(transform_input=True)``, which GoogLeNet's and InceptionV3's published
            weights need where ``init_cfg`` loads them.
        init_cfg: As in stock backbones.

    Raises:
        ValueError: If torchvision has no model of this name, or the model no such node.
        TypeError: If the model's builder does not take the arguments.
    """

    def __init__(
        self,
        name: str,
        nodes: Sequence[str],
        weights: str | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        norm_eval: bool = False,
        norm_momentum: float | None = None,
        options: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        options = dict(options or {})
        if weights is not None and name in _WITH_AUXILIARY:
            options.setdefault('transform_input', True)  # as torchvision does
        recipe = _Recipe(name, tuple(nodes), options, dict(norm_cfg) if norm_cfg else None)
        extractor = _extract(recipe.build(weights), recipe)
        for child_name, child in extractor.named_children():
            self.add_module(child_name, child)
        self._forwards = _Forwards(recipe, extractor)
        self._norm_eval = norm_eval
        if norm_momentum is not None:
            for norm in self._batch_norms():
                norm.momentum = norm_momentum

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images.

        Args:
            x: (N, 3, H, W), normalised images.

        Returns:
            A (N, C, ~H / stride, ~W / stride) tensor for each node, in their order.
        """
        maps = self._forwards.of_mode[self.training](self, x)
        return tuple(maps[node] for node in self._forwards.recipe.nodes)

    def train(self, mode: bool = True) -> 'TorchvisionBackbone':
        """Sets the mode; with ``norm_eval`` batch normalisation stays in eval mode."""
        super().train(mode)
        if self._norm_eval:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of each feature map: ``neck.in_channels``."""
        return tuple(shape[1] for shape in self._probed_shapes)

    @property
    def strides(self) -> tuple[int, ...]:
        """Image pixels between neighbouring cells of each feature map.

        In networks without padding (InceptionV3), cell i does not lie at i * stride but
        some pixels further in.
        """
        return tuple(round(_PROBE_SIZE / shape[-1]) for shape in self._probed_shapes)

    @functools.cached_property
    @torch.no_grad()
    def _probed_shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the feature maps of one large image, found without its values."""
        state = {key: value.to('meta') for key, value in self.state_dict().items()}
        image = torch.empty(1, 3, _PROBE_SIZE, _PROBE_SIZE, device='meta')
        maps = functional_call(self, state, (image,))
        return tuple(feature.shape for feature in maps)


@dataclass(frozen=True)
class _Recipe:
    """What tells one architecture from another; arguments of TorchvisionBackbone."""

    name: str
    nodes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    norm_cfg: dict[str, Any] | None = None

    def build(self, weights: str | None = None) -> nn.Module:
        """The whole classifier."""
        known = list_models(module=torchvision.models)
        if self.name not in known:
            raise ValueError(
                f'name is {self.name!r}; expected a classifier of torchvision: {", ".join(known)}'
            )
        arguments = dict(self.options)
        if self.name in _WITH_AUXILIARY and weights is None:
            arguments = {**_NO_AUXILIARY, **arguments}
        if self.norm_cfg is not None:
            arguments['norm_layer'] = functools.partial(_norm_layer, self.norm_cfg)
        try:
            return get_model(self.name, weights=weights, **arguments)
        except TypeError as error:
            raise TypeError(
                f'torchvision cannot build {self.name} with '
                f'{arguments}: {error}. Correct options or norm_cfg of '
                'TorchvisionBackbone'
            ) from error


class _Forwards:
    """The traced forward passes of a recipe, which hold no parameters.

    Attributes:
        recipe: The recipe.
        of_mode: By mode (``training``), a function of (module that holds the layers,
            images) that gives the feature maps by node.
    """

    def __init__(self, recipe: _Recipe, extractor: nn.Module) -> None:
        self.recipe = recipe
        self.of_mode: dict[bool, Callable] = {}
        for mode in (False, True):
            # In each mode the extractor's class, which it has for itself, has a method
            # compiled from the graph of that mode.
            self.of_mode[mode] = type(extractor.train(mode)).forward

    @classmethod
    def trace(cls, recipe: _Recipe) -> '_Forwards':
        with torch.device('meta'):
            return cls(recipe, _extract(recipe.build(), recipe))

    def __deepcopy__(self, memo: dict) -> '_Forwards':
        return self

    def __reduce__(self) -> tuple:
        # Compiled code cannot be pickled; it is made again.
        return _Forwards.trace, (self.recipe,)


def _extract(model: nn.Module, recipe: _Recipe) -> nn.Module:
    """The part of the model up to the nodes, which gives a dict of feature maps."""
    nodes = list(recipe.nodes)
    if not nodes or len(set(nodes)) < len(nodes):
        raise ValueError(f'nodes is {nodes}; expected different names. {_known(model)}')
    try:
        # Both graphs are kept, so that they differ (dropout) needs no warning.
        extractor = create_feature_extractor(model, nodes, suppress_diff_warning=True)
    except ValueError as error:
        raise ValueError(
            f'nodes is {nodes}, and {recipe.name} has not all of them. {_known(model)}'
        ) from error
    nested = [node for node in nodes if any(node.startswith(f'{other}.') for other in nodes)]
    if nested:
        raise ValueError(
            f'nodes is {nodes}, where {nested} lie in others of them; '
            'expected separate ones. Leave one of each pair out'
        )
    return extractor


def _known(model: nn.Module) -> str:
    names = get_graph_node_names(model, suppress_diff_warning=True)[1]
    brief = dict.fromkeys('.'.join(name.split('.')[:2]) for name in names)
    return f'Modules and operations of the model, to two levels of names: {", ".join(brief)}'


def _norm_layer(cfg: Mapping[str, Any], num_features: int) -> nn.Module:
    return build_norm_layer(dict(cfg), num_features)[1]
