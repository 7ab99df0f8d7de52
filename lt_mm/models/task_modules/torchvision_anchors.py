"""Anchors of torchvision's detectors, for weights that were trained with them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import Tensor

from lt_mm.registry import TASK_UTILS, register


@register(TASK_UTILS)
class TorchvisionAnchorGenerator(AnchorGenerator):
    """mmdet's anchor generator with the two habits of torchvision's.

    Corners of the base anchors are rounded to whole pixels. And the distance of two
    anchors is the size of the (padded) image divided by that of the feature map,
    rounded down: where a level has an odd number of cells, it is below the stride. The
    padded image is the first level times its stride, which is exact because the
    detectors pad to multiples of 32.

    Args:
        strides: Stride of each level in pixels; decides which anchors lie on the image.
        sizes: Of each level, the square roots of the areas of its anchors, in pixels.
        ratios: Height by width. A location has ``len(ratios) * len(sizes[level])``
            anchors, all sizes of the first ratio first.
    """

    def __init__(
        self,
        strides: Sequence[int],
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        super().__init__(strides=strides, ratios=ratios, scales=[1], base_sizes=sizes)

    def gen_single_level_base_anchors(
        self, base_size: Sequence[float], scales: Tensor, ratios: Tensor, center: Any = None
    ) -> Tensor:
        """(A, 4) anchors around the origin; ``base_size`` are the sizes of the level."""
        sizes = torch.tensor(base_size, dtype=torch.float32)
        return super().gen_single_level_base_anchors(1, sizes, ratios, center).round()

    def grid_priors(
        self,
        featmap_sizes: list[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
        device: Any = 'cuda',
    ) -> list[Tensor]:
        """Anchors of each level, (H * W * A, 4) in pixels of the padded image."""
        spaced = copy.copy(self)
        spaced.strides = self._spacings(featmap_sizes)
        return super(TorchvisionAnchorGenerator, spaced).grid_priors(
            featmap_sizes, dtype=dtype, device=device
        )

    def _spacings(self, featmap_sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Distance of neighbouring anchors of each level, (x, y) in pixels."""
        stride_x, stride_y = self.strides[0]
        height, width = featmap_sizes[0]
        return [
            (width * stride_x // cells_x, height * stride_y // cells_y)
            for cells_y, cells_x in featmap_sizes
        ]
