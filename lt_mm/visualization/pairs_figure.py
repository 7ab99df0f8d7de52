"""The figure of the pairs that a wrapped head forms in a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from lt_mm.core.pairing import UNPAIRED
from lt_mm.datasets.display import class_name, file_of, rgb_image, source_image
from lt_mm.structures.pair_record import PairRecord
from lt_mm.visualization.drawing import Color, draw_boxes, group_styles, new_figure, show_image


def pairs_figure(
    record: PairRecord,
    data_batch: dict,
    classes: Sequence[str] | None,
    max_sources: int,
    max_replicas: int,
    max_per_group: int,
    divergence: Callable | None = None,
    heading: str = '',
) -> Figure:
    """Draws the pairs of a batch: a row for each source, with its replicas.

    :class:`~lt_mm.engine.hooks.PairVisualizationHook` describes the figure.

    Args:
        record: The record of the whole batch, on the CPU.
        data_batch: The batch as the data loader gave it.
        classes: Names of the classes, if known.
        max_sources: How many rows to draw at most.
        max_replicas: How many replicas to draw in a row at most.
        max_per_group: How many predictions of a group to draw in one replica at most.
        divergence: For a classifier, a function of the logits (n, C) of the replicas of a
            source; its value is written as KL.
        heading: Text before the number of pairs.
    """
    rows = _images_by_source(record, data_batch, max_sources, max_replicas)
    is_detector = record.kind != 'cls'
    columns = max(len(images) for images in rows.values()) + is_detector
    figure = new_figure(3.4 * columns, 3.4 * len(rows) + 0.4)
    figure.suptitle(heading + _title(record, max_per_group), fontsize=9)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flatten():
        axes.set_axis_off()
    for axes, (source_id, images) in zip(grid, rows.items()):
        if is_detector:
            shown = record.rows(_most_confident(record, images, max_per_group))
            _draw_detections(axes, shown, source_id, images, data_batch, classes)
        else:
            _draw_classified(axes, record, source_id, images, data_batch, classes, divergence)
    return figure


def _title(record: PairRecord, max_per_group: int) -> str:
    count, num_paired = len(record.paired), int(record.paired.sum())
    if not num_paired:
        return f'0 pairs: none of the {count} predictions has a partner'
    title = f'{num_paired} of {count} predictions are paired'
    if record.kind != 'cls':
        title += f'; up to {max_per_group} for each group and image are drawn'
    return title


def _images_by_source(
    record: PairRecord, data_batch: dict, max_sources: int, max_replicas: int
) -> dict[int, list[int]]:
    """The images to draw of each source, in the order of the batch, those with pairs first."""
    images: dict[int, list[int]] = {}
    for number, sample in enumerate(data_batch['data_samples']):
        images.setdefault(int(sample.source_id), []).append(number)
    with_pairs = set(record.images[record.paired].tolist())
    chosen = sorted(images, key=lambda source: not with_pairs & set(images[source]))
    return {source: images[source][:max_replicas] for source in chosen[:max_sources]}


def _most_confident(record: PairRecord, images: list[int], count: int) -> list[int]:
    """The rows of a record that are the most confident ones of their image and group."""
    chosen: dict[tuple[int, int], list[int]] = {}
    for row in record.scores.argsort(descending=True, stable=True).tolist():
        group = int(record.group_ids[row]) if record.paired[row] else UNPAIRED
        if int(record.images[row]) in images:
            chosen.setdefault((int(record.images[row]), group), []).append(row)
    return sorted(row for rows in chosen.values() for row in rows[:count])


def _draw_detections(
    grid: Any,
    shown: PairRecord,
    source_id: int,
    images: list[int],
    data_batch: dict,
    classes: Sequence[str] | None,
) -> None:
    """Fills a row of axes: the source, then its replicas."""
    assert shown.boxes is not None and shown.restored is not None  # of a detector
    styles = group_styles(shown.group_ids.tolist(), shown.paired.tolist())
    own = (shown.source_ids == source_id).nonzero()[:, 0].tolist()
    show_image(
        grid[0],
        source_image(data_batch['data_samples'][images[0]]),
        f'source {source_id}: restored',
    )
    draw_boxes(grid[0], shown.restored[own], [styles[row] for row in own])
    for axes, image in zip(grid[1:], images):
        sample = data_batch['data_samples'][image]
        rows = (shown.images == image).nonzero()[:, 0].tolist()
        show_image(axes, _replica_image(data_batch, image), f'image {image} of the batch')
        if shown.masks is not None:
            for row in rows:
                _draw_mask(axes, shown.masks[row], shown.boxes[row], styles[row])
        names = [class_name(classes, int(shown.labels[row])) for row in rows]
        if shown.masks is None:
            names = [f'{name} {shown.scores[row]:.2f}' for name, row in zip(names, rows)]
        draw_boxes(axes, shown.boxes[rows], [styles[row] for row in rows], names)
        height, width = sample.img_shape[:2]
        axes.set(xlim=(0, width), ylim=(height, 0))


def _draw_mask(axes: Any, mask: torch.Tensor, box: torch.Tensor, style: dict) -> None:
    """Tints a box by the probabilities of its mask (h, w)."""
    color: Color = style['edgecolor']
    tint = np.empty((*mask.shape, 4))
    tint[..., :3], tint[..., 3] = color, 0.5 * mask.numpy()
    x1, y1, x2, y2 = box.tolist()
    axes.imshow(tint, extent=(x1, x2, y2, y1))


def _draw_classified(
    grid: Any,
    record: PairRecord,
    source_id: int,
    images: list[int],
    data_batch: dict,
    classes: Sequence[str] | None,
    divergence: Callable | None,
) -> None:
    """Fills a row of axes: the replicas of a source, with their predicted classes."""
    assert record.logits is not None and divergence is not None  # of a classifier
    kl = float(divergence(record.logits[record.source_ids == source_id]))
    for axes, image in zip(grid, images):
        row = int((record.images == image).nonzero()[0, 0])
        title = f'{class_name(classes, int(record.labels[row]))} {record.scores[row]:.2f}'
        if image == images[0]:
            title = f'source {source_id}, KL {kl:.3g}\n{title}'
        show_image(axes, _replica_image(data_batch, image), title)


def _replica_image(data_batch: dict, image: int) -> np.ndarray:
    sample = data_batch['data_samples'][image]
    return rgb_image(data_batch['inputs'][image], file_of(sample) is not None)
