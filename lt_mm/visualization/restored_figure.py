"""A figure of the predictions for replicas, and all of them restored to their source."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_mm.core.pairing import is_paired
from lt_mm.visualization.drawing import draw_boxes, group_styles, new_figure, show_image


@dataclass
class PredictedReplica:
    """A replica with n predicted boxes.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4), pixels of the replica.
        restored: (n, 4), pixels of the source.
        names: What is written beside each box.
        group_ids: (n,) int64, equal for boxes that pair, in all replicas.
    """

    image: np.ndarray
    boxes: Tensor
    restored: Tensor
    names: list[str]
    group_ids: Tensor


def restored_figure(source: np.ndarray, replicas: list[PredictedReplica]) -> Figure:
    """Draws replicas with their predictions, and below them the source with all of these.

    Boxes that pair share a colour; the others are dashed and grey.

    Args:
        source: (H, W, 3) uint8 RGB.
        replicas: Replicas of it.
    """
    group_ids = torch.cat([replica.group_ids for replica in replicas])
    paired = is_paired(group_ids)
    styles = iter(group_styles(group_ids.tolist(), paired.tolist(), linewidth=1.8))
    figure = new_figure(3.2 * len(replicas), 7.5)
    grid = figure.add_gridspec(2, len(replicas), height_ratios=[1, 2])
    below = figure.add_subplot(grid[1, :])
    count, num_paired = len(paired), int(paired.sum())
    show_image(
        below,
        source,
        f'source image: {count} predictions of {len(replicas)} replicas restored, {num_paired} '
        f'paired (a colour for each group), {count - num_paired} unpaired (dashed)',
    )
    for number, replica in enumerate(replicas, start=1):
        axes = figure.add_subplot(grid[0, number - 1])
        show_image(axes, replica.image, f'replica {number}')
        own = [next(styles) for _ in replica.names]
        draw_boxes(axes, replica.boxes, own, replica.names)
        draw_boxes(below, replica.restored, own)
    return figure
