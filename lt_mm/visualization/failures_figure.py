"""A figure of the annotations that were lost, are hardly visible or come back inexactly."""

import itertools
import math
import textwrap
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_mm.core.geometry import moved_outlines
from lt_mm.datasets.replica_failures import Failure
from lt_mm.visualization.drawing import (
    colors,
    draw_boxes,
    draw_outline,
    new_figure,
    outlined,
    show_image,
)

_MOST_TILES = 30


def failures_figure(failures: list[Failure], min_visibility: float) -> Figure:
    """Draws a tile for each annotation and kind of failure; of many, some of each kind and source.

    What befalls an annotation in several replicas is drawn once, and the tile says how often.

    Args:
        failures: What :func:`lt_mm.datasets.replica_failures.find_failures` found.
        min_visibility: The threshold that was used.
    """
    if not failures:
        return _no_failures(min_visibility)
    alike: dict[Hashable, list[Failure]] = {}
    for failure in failures:
        alike.setdefault((failure.source.source_id, failure.row, failure.kinds), []).append(failure)
    drawn = _some_of_each_kind(list(alike.values()))
    columns = min(max(len(drawn), 3), 6)
    rows = math.ceil(len(drawn) / columns)
    figure = new_figure(2.8 * columns, 3.2 * rows + 0.5)
    figure.suptitle(
        f'{len(failures)} instances of replicas are lost, less than {min_visibility:.0%} visible '
        f'or inexact; {len(drawn)} of {len(alike)} different ones are drawn\n'
        '(dashed: the annotation moved; solid: the box of the replica)',
        fontsize=9,
    )
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    for axes, group in zip(grid, drawn):
        # Where it went can be shown in the one that has a matrix.
        shown = next((failure for failure in group if failure.matrix is not None), group[0])
        others = {failure.number for failure in group} - {shown.number}
        _draw_tile(axes, shown, len(others))
    return figure


def _no_failures(min_visibility: float) -> Figure:
    figure = new_figure(7, 1.2)
    figure.text(
        0.5,
        0.5,
        'no failures: every instance is in every replica,\n'
        f'at least {min_visibility:.0%} visible and exact',
        ha='center',
        va='center',
    )
    return figure


def _some_of_each_kind(groups: list[list[Failure]]) -> list[list[Failure]]:
    """At most so many groups as fit, in turn of each kind, and in these of each source."""
    kinds = _split(groups, lambda group: group[0].kinds)
    mixed = [_in_turn(_split(own, lambda group: group[0].source.source_id)) for own in kinds]
    return sorted(_in_turn(mixed)[:_MOST_TILES], key=lambda group: group[0].kinds)


def _split(groups: list[list[Failure]], key: Callable) -> list[list[list[Failure]]]:
    parts: dict[Hashable, list[list[Failure]]] = {}
    for group in groups:
        parts.setdefault(key(group), []).append(group)
    return list(parts.values())


def _in_turn(lists: Iterable[list[list[Failure]]]) -> list[list[Failure]]:
    """The first of each list, then the second of each, and so on."""
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return [group for group in mixed if group is not None]


def _draw_tile(axes: Any, failure: Failure, num_others: int) -> None:
    """Draws an instance in its replica, enlarged; in the source if no matrix is known."""
    source, replica, box = failure.source, failure.replica, failure.box
    index = source.rows.index(failure.row)
    annotated = source.boxes[index : index + 1]
    color = colors(len(source.rows))[index]
    text = (
        f'{source.name}, #{failure.row} {source.names[index]}, replica {failure.number}'
        + f' (and {num_others} more)' * bool(num_others)
        + f': {failure.reason}'
    )
    title = '\n'.join(textwrap.wrap(text, 44))
    solid = outlined(color, linewidth=1.2)
    if failure.matrix is None:
        show_image(axes, source.image, f'{title}\n(its place in the source)')
        draw_boxes(axes, annotated, [solid])
        _zoom_to(axes, annotated.reshape(-1, 2), source.image)
        return
    show_image(axes, replica.image, title)
    outline = moved_outlines(annotated, failure.matrix)[0]
    draw_outline(axes, outline, **outlined(color, linestyle='--', linewidth=1.2))
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
