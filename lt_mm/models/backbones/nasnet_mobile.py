"""NASNet-A (4 @ 1056), "NASNetMobile", from timm's NASNet cells.

timm has the large net only (6 @ 4032). The mobile one has the same cells; it stacks
four instead of six, is narrower, and lets the cell after a reduction read the last
normal cell, where the large one reads the one before that.
"""

from functools import partial
from types import ModuleType
from typing import Any

import torch
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn

from lt_mm.registry import MODELS, register

_STEM_CHANNELS = 32
_CHANNELS = 1056 // 24  # a cell of the last stack gives 6 * 4 of these
_CELLS_IN_STACK = 4
# Number of the first cell of each stack in the published checkpoints, where the
# mobile net leaves out numbers of the large one.
_FIRST_CELL = (0, 6, 12)


@register(MODELS)
class NASNetMobile(BaseBackbone):
    """NASNet-A (4 @ 1056): Zoph et al., "Learning Transferable Architectures", 2018.

    Needs timm. Without the auxiliary classifier and the path dropout with which the
    authors trained it from scratch. A head needs ``in_channels=1056``; with 1000
    classes the net has 5,289,978 parameters (Keras counts 5,326,716, which includes
    the 36,738 running means and variances).

    Module names are those of the PyTorch port from which timm's cells come, whose
    checkpoint ``nasnetamobile-7e03cead.pth`` can be named in ``load_from`` of a config
    with a ``LinearClsHead``, and gives the head its weights too. It expects RGB images
    of 224 pixels with mean and standard deviation 127.5.

    Args:
        init_cfg: Initialisation; timm's layers keep PyTorch's default.

    Raises:
        ImportError: Without timm.
    """

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        nasnet, layers = _timm_parts()
        same = dict(pad_type='same')
        self.conv0 = layers.ConvNormAct(
            3,
            _STEM_CHANNELS,
            kernel_size=3,
            stride=2,
            padding=0,
            apply_act=False,
            norm_layer=partial(nn.BatchNorm2d, eps=0.001),
        )
        self.cell_stem_0 = nasnet.CellStem0(_STEM_CHANNELS, _CHANNELS // 4, **same)
        self.cell_stem_1 = nasnet.CellStem1(_STEM_CHANNELS, _CHANNELS // 2, **same)
        self.cell_names: list[str] = []
        # Channels of the last two outputs: what a cell reads as x_prev and x.
        before, last = _CHANNELS, 2 * _CHANNELS
        for stack, first in enumerate(_FIRST_CELL):
            width = _CHANNELS * 2**stack
            if stack:
                reduction = getattr(nasnet, f'ReductionCell{stack - 1}')
                self._append(
                    f'reduction_cell_{stack - 1}', reduction(before, width, last, width, **same)
                )
                before, last = last, 4 * width
            for cell in range(first, first + _CELLS_IN_STACK):
                # The first cell halves x_prev, which is of twice the size.
                kind, out_before = (
                    (nasnet.FirstCell, width // 2) if cell == first else (nasnet.NormalCell, width)
                )
                self._append(f'cell_{cell}', kind(before, out_before, last, width, **same))
                before, last = last, 6 * width
        self.act = nn.ReLU(inplace=True)
        _average_without_padding(self, layers.AvgPool2dSame)

    def _append(self, name: str, cell: nn.Module) -> None:
        self.add_module(name, cell)
        self.cell_names.append(name)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Features of images.

        Args:
            x: (N, 3, H, W), normalised images.

        Returns:
            Tuple of one tensor (N, 1056, h, w) with stride 32, where
            h = ceil(floor((H - 1) / 2) / 16): the first layer alone does not pad.
            7 for 224 pixels.
        """
        before = self.conv0(x)
        x = self.cell_stem_0(before)
        before, x = x, self.cell_stem_1(before, x)
        for name in self.cell_names:
            before, x = x, getattr(self, name)(x, before)
        return (self.act(x),)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *_: Any) -> None:
        """Renames the published weights, in place; ``ImageClassifier`` calls it.

        Args:
            state_dict: Any; changed if it is that of the published classifier.
            prefix: Name of the classifier in the module that loads.
        """
        if 'last_linear.weight' not in state_dict:
            return
        for name in list(state_dict):
            part, _, rest = name.partition('.')
            new = f'head.fc.{rest}' if part == 'last_linear' else f'backbone.{name}'
            state_dict[prefix + new] = state_dict.pop(name)


class _AverageWithoutPadding(nn.Module):
    """An average pool with padding, as the mean over the pixels inside."""

    def __init__(self, padded_average: nn.Module) -> None:
        super().__init__()
        self.padded_average = padded_average

    def forward(self, x: Tensor) -> Tensor:
        share_inside = self.padded_average(torch.ones_like(x[:1, :1]))
        return self.padded_average(x) / share_inside


def _average_without_padding(net: nn.Module, padded_average: type) -> None:
    """Wraps all pools of one class.

    timm's ``AvgPool2dSame`` takes ``count_include_pad=False`` and counts the padding
    all the same; TensorFlow and the PyTorch port, in which the published weights were
    trained and tested, do not.
    """
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if type(child) is padded_average:
                setattr(module, name, _AverageWithoutPadding(child))


def _timm_parts() -> tuple[ModuleType, ModuleType]:
    """Timm's modules of NASNet cells and of layers."""
    try:
        from timm import layers
        from timm.models import nasnet
    except ImportError as error:
        raise ImportError(
            "NASNetMobile needs timm's cells: pip install 'lt_mm[baselines]'"
        ) from error
    return nasnet, layers
