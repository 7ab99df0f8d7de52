"""The small networks of the CIFAR experiments, from MMPretrain's parts.

MMPretrain's ``ResNet_CIFAR`` and ``DenseNet`` are the ImageNet designs, four stages
wide, with another stem at most. The networks of the papers' CIFAR tables have three
stages on 32, 16 and 8 pixels and a tenth of the parameters.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.backbones import DenseNet, ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock
from torch import Tensor, nn

from lt_mm.registry import MODELS, register

_InitCfg = dict | Sequence[dict] | None
_MAX_DEPTH = 1202  # the deepest net of the ResNet paper
_HE_INIT = (dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer='_BatchNorm'))


@register(MODELS)
class CifarResNet(ResNet_CIFAR):
    """ResNet for CIFAR: section 4.2 of He et al., "Deep Residual Learning", 2016.

    6n + 2 layers: a 3x3 convolution, three stages of n basic blocks with 16, 32 and
    64 channels, and the classifier, which the head adds. Shortcuts between stages are
    "option A", without parameters. A head needs ``in_channels=64``.

    With 10 classes: 0.27M parameters at depth 20, 0.66M at 44, 1.73M at 110. The 0.66M
    net is called "ResNet-40" in some papers; 40 is not of the form 6n + 2.

    Args:
        depth: 8, 14, 20, 26, 32, 38, 44, ..., 110, ..., 1202.
        zero_init_residual: Whether each block starts as the identity, which is
            MMPretrain's default and not in the paper.
        **kwargs: Of MMPretrain's ``ResNet`` (``frozen_stages``, ``norm_cfg``,
            ``out_indices`` of three stages, ``init_cfg``). Initialised by He's rule.

    Raises:
        ValueError: If no such net has this depth.
    """

    arch_settings = {
        6 * n + 2: (BasicBlock, (n, n, n)) for n in range(1, (_MAX_DEPTH - 2) // 6 + 1)
    }

    def __init__(self, depth: int, zero_init_residual: bool = False, **kwargs: Any) -> None:
        if depth not in self.arch_settings:
            raise ValueError(
                f'depth is {depth}; expected 6n + 2 up to {_MAX_DEPTH}, such as 20, 32, '
                '44, 56 or 110. The "ResNet-40" of some papers, 0.66M parameters, is '
                "the net of 44 layers: dict(type='lt_mm.CifarResNet', depth=44)"
            )
        stages = dict(
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            stem_channels=16,
            base_channels=16,
            out_indices=(2,),
        )
        super().__init__(depth, zero_init_residual=zero_init_residual, **{**stages, **kwargs})

    def make_res_layer(self, **kwargs: Any) -> nn.Sequential:
        """A stage of the stock net, with option A in the place of its projection."""
        stage = super().make_res_layer(**kwargs)
        first = stage[0]
        if first.downsample is not None:
            first.downsample = _PaddedShortcut(first.out_channels - first.in_channels, first.stride)
        return stage


class _PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, then zeros as the added channels."""

    def __init__(self, added_channels: int, stride: int) -> None:
        super().__init__()
        self.added_channels = added_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.added_channels))


@register(MODELS)
class CifarDenseNet(DenseNet):
    """DenseNet for CIFAR without bottlenecks: Huang et al., table 2, rows "DenseNet".

    3n + 4 layers: a 3x3 convolution of 16 channels, three dense blocks of n layers
    (BN, ReLU, 3x3 convolution), transitions that keep the number of channels, and the
    classifier, which the head adds. ``feat_dim`` is the ``in_channels`` of a head: 448
    for depth 40 and growth rate 12, which with 10 classes has 1.0M parameters. No
    dropout, as in the paper's runs with augmentation.

    Args:
        depth: 3n + 4, for example 40 or 100.
        growth_rate: Channels that each layer adds (k).
        init_cfg: He's rule by default.

    Raises:
        ValueError: If no such net has this depth.
    """

    _INIT_CHANNELS = 16

    def __init__(
        self, depth: int = 40, growth_rate: int = 12, init_cfg: _InitCfg = _HE_INIT
    ) -> None:
        layers, rest = divmod(depth - 4, 3)
        if layers < 1 or rest:
            raise ValueError(f'depth is {depth}; expected 3n + 4 with n >= 1, such as 40 or 100')
        super().__init__(
            arch=dict(
                growth_rate=growth_rate, depths=[layers] * 3, init_channels=self._INIT_CHANNELS
            ),
            compression_factor=1.0,
            init_cfg=init_cfg if isinstance(init_cfg, dict) else list(init_cfg or ()),
        )
        self.feat_dim = self._INIT_CHANNELS + 3 * layers * growth_rate
        self.stem = _conv3x3(3, self._INIT_CHANNELS)
        for stage in self.stages:
            for i, bottleneck in enumerate(stage.block):
                stage.block[i] = _PlainDenseLayer(bottleneck.norm1.num_features, growth_rate)


class _PlainDenseLayer(nn.Sequential):
    """One layer of a dense block: reads all maps before it, adds ``growth_rate``."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), _conv3x3(in_channels, growth_rate)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return super().forward(torch.cat(list(features), dim=1))


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
