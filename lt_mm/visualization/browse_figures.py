"""Figures of replicas: restored boxes, matrices, and the annotations that were lost."""

import itertools
import math
import textwrap
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.figure import Figure
from torch import Tensor

from lt_mm.core.geometry import moved_outlines
from lt_mm.datasets.replica_failures import Failure
from lt_mm.datasets.source_catalog import Instances, Replica, Source
from lt_mm.visualization.drawing import (
    GREY,
    Color,
    colors,
    draw_boxes,
    draw_masks,
    draw_outline,
    new_figure,
    show_image,
)

_LISTED_MATRICES = 2
_MOST_TILES = 30
_WHITE_ON_BLACK = dict(
    edgecolor='white',
    linewidth=4,
    path_effects=[patheffects.withStroke(linewidth=5.5, foreground='black')],
)


def source_figure(source: Source, replicas: list[Replica]) -> Figure:
    """Draws a source with all restored boxes, then its replicas with their own boxes.

    Args:
        source: The source.
        replicas: Its replicas.
    """
    cells = 1 + len(replicas)
    columns = cells if cells <= 3 else min(math.ceil(math.sqrt(cells)), 6)
    rows = math.ceil(cells / columns)
    height, width = source.image.shape[:2]
    figure = new_figure(4.4 * columns, rows * (4.4 * min(height / width, 1.3) + 1.1))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[cells:]:
        axes.set_axis_off()
    _draw_source(grid[0], source, replicas)
    for number, (axes, replica) in enumerate(zip(grid[1:], replicas), start=1):
        _draw_replica(axes, source, replica, number)
    return figure


def _colors_of(source: Source) -> dict[int, Color]:
    return dict(zip(source.rows, colors(len(source.rows))))


def _draw_source(axes: Any, source: Source, replicas: list[Replica]) -> None:
    if not source.is_detection:
        show_image(axes, source.image, f'{source.name}\n{", ".join(source.names)}')
        return
    own = _colors_of(source)
    show_image(
        axes,
        source.image,
        f'{source.name}: annotations (white): {len(own)},\n'
        f'boxes of {len(replicas)} replicas restored (coloured; dotted: inexact)',
    )
    if source.masks is not None:
        draw_masks(axes, source.masks, list(own.values()))
    draw_boxes(axes, source.boxes, [_WHITE_ON_BLACK] * len(own))
    for instances in [each.instances for each in replicas if each.instances is not None]:
        places = instances.of(source.source_id)
        styles = [_style(instances, place, own) for place in places]
        draw_boxes(axes, instances.restored[places], styles)
    names = [f'#{row} {name}' for row, name in zip(source.rows, source.names)]
    draw_boxes(
        axes, source.boxes, [dict(edgecolor=color, linewidth=0) for color in own.values()], names
    )


def _draw_replica(axes: Any, source: Source, replica: Replica, number: int) -> None:
    title = f'replica {number}'
    if replica.source_id != source.source_id:
        title += f': source {replica.source_id} in its place'
    applied = textwrap.shorten(', '.join(replica.applied), 60, placeholder=' ...')
    show_image(axes, replica.image, f'{title}\n{applied}', _matrix_note(source, replica))
    instances = replica.instances
    if instances is None:
        return
    own, styles, names = _colors_of(source), [], []
    for place, (source_id, row) in enumerate(instances.source_ids.tolist()):
        if source_id == source.source_id:
            styles.append(_style(instances, place, own))
            names.append(f'#{row} {float(instances.visibility[place]):.0%}')
        else:
            styles.append(dict(edgecolor=GREY, linestyle='--', linewidth=1))
            names.append(f'of {source_id}')
    if instances.masks is not None:
        places = instances.of(source.source_id)
        draw_masks(
            axes,
            instances.masks[places],
            [own[int(instances.source_ids[place, 1])] for place in places],
        )
    draw_boxes(axes, instances.boxes, styles, names)


def _style(instances: Instances, place: int, own: dict[int, Color]) -> dict:
    color = own[int(instances.source_ids[place, 1])]
    return dict(edgecolor=color, linewidth=1.6, linestyle='-' if instances.exact[place] else ':')


def _matrix_note(source: Source, replica: Replica) -> str:
    """The matrix of a replica, or some of those of its instances."""
    if replica.matrix is not None:
        return f'source to replica:\n{_lines(replica.matrix)}'
    if replica.instances is None:
        return 'no matrix: transforms of classifiers\nrecord no geometry'
    own = replica.instances.of(source.source_id)
    listed = [
        f'#{int(replica.instances.source_ids[place, 1])}:\n'
        + _lines(replica.instances.matrices[place])
        for place in own[:_LISTED_MATRICES]
    ]
    more = len(own) - len(listed)
    return '\n'.join(
        ['each instance has its own matrix', *listed] + ([f'and {more} more'] if more else [])
    )


def _lines(matrix: Tensor) -> str:
    return '\n'.join(' '.join(f'{value:9.3f}' for value in row) for row in matrix.tolist())


def failures_figure(failures: list[Failure], min_visibility: float) -> Figure:
    """Draws a tile for each failure; of many, some of each kind.

    Args:
        failures: What :func:`lt_mm.datasets.replica_failures.find_failures` found.
        min_visibility: The threshold that was used.
    """
    drawn = _some_of_each_kind(failures)
    columns = min(max(len(drawn), 3), 6)
    rows = math.ceil(max(len(drawn), 1) / columns)
    figure = new_figure(2.8 * columns, 3.2 * rows + 0.5)
    title = (
        f'{len(drawn)} of {len(failures)} instances of replicas that are lost, less '
        f'than {min_visibility:.0%} visible, or inexact'
    )
    if not failures:
        title = (
            'no failures: every instance is in every replica, at least '
            f'{min_visibility:.0%} visible and exact'
        )
    figure.suptitle(
        f'{title}\n(dashed: the annotation moved; solid: the box of the replica)', fontsize=9
    )
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    for axes, failure in zip(grid, drawn):
        _draw_tile(axes, failure)
    return figure


def _some_of_each_kind(failures: list[Failure]) -> list[Failure]:
    kinds: dict[tuple[str, ...], list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(failure.kinds, []).append(failure)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
    chosen = [failure for failure in mixed if failure is not None][:_MOST_TILES]
    return sorted(chosen, key=lambda failure: failure.kinds)


def _draw_tile(axes: Any, failure: Failure) -> None:
    """Draws an instance in its replica, enlarged; in the source if no matrix is known."""
    source, replica, box = failure.source, failure.replica, failure.box
    index = source.rows.index(failure.row)
    annotated = source.boxes[index : index + 1]
    color = colors(len(source.rows))[index]
    text = (
        f'{source.name}, #{failure.row} {source.names[index]}, replica '
        f'{failure.number}: {failure.reason}'
    )
    title = '\n'.join(textwrap.wrap(text, 44))
    solid = dict(edgecolor=color, linewidth=1.8)
    if failure.matrix is None:
        show_image(axes, source.image, f'{title}\n(its place in the source)')
        draw_boxes(axes, annotated, [solid])
        _zoom_to(axes, annotated.reshape(-1, 2), source.image)
        return
    show_image(axes, replica.image, title)
    outline = moved_outlines(annotated, failure.matrix)[0]
    draw_outline(axes, outline, edgecolor=color, linestyle='--', linewidth=1.5)
    if box is None:
        _make_room(axes, outline, replica.image)
    else:
        draw_boxes(axes, box[None], [solid])
        _zoom_to(axes, torch.cat([outline, box.reshape(-1, 2)]), replica.image)


def _make_room(axes: Any, outline: Tensor, image: np.ndarray) -> None:
    """Shows a whole image and an outline beyond it, up to one image away."""
    size = np.array(image.shape[1::-1])
    low = np.minimum(outline.numpy().min(axis=0), 0).clip(-size, None)
    high = np.maximum(outline.numpy().max(axis=0), size).clip(None, 2 * size)
    _set_limits(axes, low, high, 0.03 * size.max(), size)


def _zoom_to(axes: Any, points: Tensor, image: np.ndarray) -> None:
    """Shows a square around points (k, 2) that lie at most one image away."""
    size = np.array(image.shape[1::-1])
    low = points.numpy().min(axis=0).clip(-size, 2 * size)
    high = points.numpy().max(axis=0).clip(-size, 2 * size)
    center, half = (low + high) / 2, (high - low).max() / 2
    _set_limits(axes, center - half, center + half, max(half, 0.08 * size.max()), size)


def _set_limits(
    axes: Any, low: np.ndarray, high: np.ndarray, margin: float, size: np.ndarray
) -> None:
    """Sets the limits of the axes, and draws the frame of the image."""
    axes.set_xlim(low[0] - margin, high[0] + margin)
    axes.set_ylim(high[1] + margin, low[1] - margin)
    draw_boxes(axes, np.array([[0, 0, *size]]), [dict(edgecolor='black', linewidth=0.8)])
