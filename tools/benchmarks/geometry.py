"""Boxes back to the source, each by a matrix of its own."""

import numpy as np
import torch
from mmdet.structures.bbox import HorizontalBoxes
from torch import Tensor

from lt_mm.core.geometry import boxes_to_source
from tools.benchmarks.timing import Row, Timer

IN_THE_LOOP = 500  # boxes; a call for each


def measure(timer: Timer, quick: bool) -> list[Row]:
    n = 10_000 if quick else 100_000
    boxes, matrices = _draw(n, timer.device)
    restored = boxes_to_source(boxes, matrices)
    np.testing.assert_allclose(
        _loop(boxes, matrices)[:IN_THE_LOOP], restored[:IN_THE_LOOP].cpu(), atol=1e-2
    )
    time = timer.compare(lambda: boxes_to_source(boxes, matrices), lambda: _loop(boxes, matrices))
    share = n / IN_THE_LOOP
    rows = [
        Row(
            f'{n} boxes restored',
            "MMDetection's project_ in a loop",
            share * time.faster,
            'x faster',
            note=f'{1e3 * time.a:.1f} ms and {share * time.b:.1f} s (from {IN_THE_LOOP} boxes)',
        )
    ]
    vectorised = timer.compare(
        lambda: boxes_to_source(boxes, matrices), lambda: _by_corners(boxes, matrices)
    )
    rows.append(
        Row(
            f'{n} boxes restored',
            'torch.linalg.inv and four corners',
            vectorised.ratio,
            'x time',
            note=f'{1e3 * vectorised.a:.1f} and {1e3 * vectorised.b:.1f} ms',
        )
    )
    return rows


def _draw(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Boxes in pixels of replicas that were scaled, flipped and shifted."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(n, 8, generator=generator)
    corner, sides = 500 * draw[:, :2], 5 + 300 * draw[:, 2:4]
    matrices = torch.eye(3).repeat(n, 1, 1)
    matrices[:, 0, 0] = (0.5 + draw[:, 4]) * torch.where(draw[:, 7] < 0.5, -1, 1)
    matrices[:, 1, 1] = 0.5 + draw[:, 5]
    matrices[:, :2, 2] = 200 * draw[:, 5:7] - 100
    return torch.cat([corner, corner + sides], dim=1).to(device), matrices.to(device)


def _loop(boxes: Tensor, matrices: Tensor) -> np.ndarray:
    restored = []
    for box, matrix in zip(boxes[:IN_THE_LOOP].split(1), matrices.unbind()):
        one = HorizontalBoxes(box)
        one.project_(np.linalg.inv(matrix.cpu().numpy()))
        restored.append(one.tensor)
    return torch.cat(restored).cpu().numpy()


def _by_corners(boxes: Tensor, matrices: Tensor) -> Tensor:
    corners = boxes[:, [0, 1, 2, 1, 0, 3, 2, 3]].view(-1, 4, 2)
    homogeneous = torch.cat([corners, torch.ones_like(corners[..., :1])], dim=2)
    moved = homogeneous @ torch.linalg.inv(matrices).transpose(1, 2)
    moved = moved[..., :2] / moved[..., 2:]
    return torch.cat([moved.amin(dim=1), moved.amax(dim=1)], dim=1)
