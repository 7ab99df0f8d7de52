"""A figure of the predictions for replicas, and all of them restored to their source."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_mm.core.pairing import is_paired
from lt_mm.visualization.drawing import draw_boxes, group_styles, new_figure, outlined, show_image


@dataclass
class PredictedReplica:
    """A replica with n predicted boxes.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4), pixels of the replica.
        restored: (n, 4), pixels of the source.
        names: What is written beside each box.
        group_ids: (n,) int64, equal for boxes that pair, in all replicas.
        annotations: (k, 4), the annotated boxes as they lie in the replica.
    """

    image: np.ndarray
    boxes: Tensor
    restored: Tensor
    names: list[str]
    group_ids: Tensor
    annotations: Tensor


def restored_figure(
    source: np.ndarray, annotations: Tensor, replicas: list[PredictedReplica], empty: str = ''
) -> Figure:
    """Draws replicas with their predictions, and below them the source with all of these.

    Boxes that pair share a colour; the others are dashed and grey. Annotations are white.

    Args:
        source: (H, W, 3) uint8 RGB.
        annotations: (k, 4), the annotated boxes in pixels of the source.
        replicas: Replicas of it.
        empty: What to say where there is no prediction.
    """
    group_ids = torch.cat([replica.group_ids for replica in replicas])
    paired = is_paired(group_ids)
    styles = iter(group_styles(group_ids.tolist(), paired.tolist()))
    figure = new_figure(3.2 * len(replicas), 7.5)
    grid = figure.add_gridspec(2, len(replicas), height_ratios=[1, 2])
    below = figure.add_subplot(grid[1, :])
    count, num_paired = len(paired), int(paired.sum())
    found = (
        f'{count} predictions of {len(replicas)} replicas restored, {num_paired} paired\n'
        f'(a colour for each group), {count - num_paired} unpaired (dashed grey)'
    )
    title = f'source image: {len(annotations)} annotations (white); {found if count else empty}'
    show_image(below, source, title)
    _draw_annotations(below, annotations)
    for number, replica in enumerate(replicas, start=1):
        axes = figure.add_subplot(grid[0, number - 1])
        show_image(axes, replica.image, f'replica {number}')
        _draw_annotations(axes, replica.annotations)
        own = [next(styles) for _ in replica.names]
        draw_boxes(axes, replica.boxes, own, replica.names)
        draw_boxes(below, replica.restored, own)
    return figure


def _draw_annotations(axes: Any, boxes: Tensor) -> None:
    draw_boxes(axes, boxes, [outlined('white', linewidth=1.8)] * len(boxes))
