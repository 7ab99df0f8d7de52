"""Figures of replicas: restored boxes, what was done to each copy, and which images it shows."""

import math
import string
import textwrap
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_mm.core.geometry import moved_outlines
from lt_mm.datasets.source_catalog import Instances, Replica, Source
from lt_mm.visualization.drawing import (
    BLACK,
    WHITE_HALO,
    Color,
    colors,
    draw_boxes,
    draw_masks,
    draw_names,
    draw_outline,
    new_figure,
    other_colors,
    outlined,
    show_image,
)

_CELL = 4.4  # inches
_LINE_LENGTH = 62  # characters of a title
_LETTERS = string.ascii_uppercase
_NAMED_ANNOTATIONS = 12  # of more, only the numbers are written


def source_figure(source: Source, replicas: list[Replica]) -> Figure:
    """Draws a source with all restored boxes, then its replicas with their own boxes.

    Where a replica shows several images (Mosaic, MixUp, CopyPaste), the outline of each one that
    has an instance in it is drawn, and the text below says whose it is.

    Args:
        source: The source.
        replicas: Its replicas.
    """
    cells = 1 + len(replicas)
    columns = cells if cells <= 3 else min(math.ceil(math.sqrt(cells)), 6)
    rows = math.ceil(cells / columns)
    height, width = source.image.shape[:2]
    figure = new_figure(_CELL * columns, rows * (_CELL * min(height / width, 1.3) + 1.1))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[cells:]:
        axes.set_axis_off()
    _draw_source(grid[0], source, replicas)
    for number, (axes, replica) in enumerate(zip(grid[1:], replicas), start=1):
        _draw_replica(axes, source, replica, number)
    return figure


def _colors_of(source: Source) -> dict[int, Color]:
    return dict(zip(source.rows, colors(len(source.rows))))


def _wrapped(text: str) -> str:
    return '\n'.join(textwrap.wrap(text, _LINE_LENGTH))


def _draw_source(axes: Any, source: Source, replicas: list[Replica]) -> None:
    if not source.is_detection:
        show_image(axes, source.image, f'{source.name}\n{_wrapped(", ".join(source.names))}')
        return
    own = _colors_of(source)
    show_image(
        axes,
        source.image,
        f'{source.name}: {len(own)} annotations (white) and the boxes\n'
        f'of {len(replicas)} replicas restored (coloured; dotted: inexact)'
        if own
        else f'{source.name}: no annotations',
    )
    if source.masks is not None:
        draw_masks(axes, source.masks, list(own.values()))
    names = [f'#{row} {name}' for row, name in zip(source.rows, source.names)]
    if len(names) > _NAMED_ANNOTATIONS:
        names = [f'#{row}' for row in source.rows]
    styles = [outlined('white', linewidth=1.8)] * len(own)
    draw_boxes(axes, source.boxes, styles)
    for instances in [each.instances for each in replicas if each.instances is not None]:
        places = instances.of(source.source_id)
        draw_boxes(
            axes, instances.restored[places], [_style(instances, place, own) for place in places]
        )
    draw_names(axes, source.boxes, names, list(own.values()))


def _draw_replica(axes: Any, source: Source, replica: Replica, number: int) -> None:
    title = f'replica {number}'
    if replica.source_id != source.source_id:
        title += f': source {replica.source_id} in its place'
    applied = _wrapped(', '.join(replica.applied)) or 'no transform is recorded'
    tiles = _tiles(source, replica)
    note = _tiles_note(tiles, source) if tiles else _matrix_note(replica)
    show_image(axes, replica.image, f'{title}\n{applied}', note)
    instances = replica.instances
    if instances is None:
        return
    own, hues = _colors_of(source), _colors_of_others(tiles, source)
    _draw_tiles(axes, tiles, hues)
    styles, names = [], []
    for place, (source_id, row) in enumerate(instances.source_ids.tolist()):
        if source_id == source.source_id:
            styles.append(_style(instances, place, own))
            names.append(f'#{row}' + _share_note(float(instances.visibility[place])))
        else:
            styles.append(dict(edgecolor=hues[source_id], linestyle='--', linewidth=0.9))
            names.append('')
    if instances.masks is not None:
        places = instances.of(source.source_id)
        draw_masks(
            axes,
            instances.masks[places],
            [own[int(instances.source_ids[place, 1])] for place in places],
        )
    draw_boxes(axes, instances.boxes, styles, names)


def _share_note(visibility: float) -> str:
    """How much of an instance is visible, where that is not all of it."""
    return '' if visibility > 0.995 else f' {visibility:.0%}'


def _style(instances: Instances, place: int, own: dict[int, Color]) -> dict:
    color = own[int(instances.source_ids[place, 1])]
    dash = dict(linewidth=0.9) if instances.exact[place] else dict(linewidth=1.2, linestyle=':')
    return dict(edgecolor=color, **dash)


class _Tile:
    """An image that a replica shows, where it shows several.

    Attributes:
        source: The image.
        outline: (4, 2) float64, its corners in pixels of the replica.
        rows: The annotations of it that the replica shows, as it lies there.
    """

    def __init__(self, source: Source, matrix: Tensor) -> None:
        height, width = source.image.shape[:2]
        frame = torch.tensor([[0, 0, width, height]], dtype=torch.float64)
        self.source, self.rows = source, list[int]()
        self.outline = moved_outlines(frame, matrix)[0]


def _tiles(source: Source, replica: Replica) -> list[_Tile]:
    """The images with instances in a replica that shows several, its own source first."""
    tiles: dict[tuple, _Tile] = {}
    instances = replica.instances
    if instances is None or replica.matrix is not None:
        return []
    for (source_id, row), matrix in zip(instances.source_ids.tolist(), instances.matrices):
        place = (source_id, *(matrix / matrix[2, 2]).flatten().round(decimals=3).tolist())
        if place not in tiles:
            tiles[place] = _Tile(instances.sources[source_id], matrix)
        tiles[place].rows.append(row)
    return sorted(tiles.values(), key=lambda tile: tile.source.source_id != source.source_id)


def _colors_of_others(tiles: list[_Tile], source: Source) -> dict[int, Color]:
    """A colour for each other source."""
    others = list(dict.fromkeys(tile.source.source_id for tile in tiles))
    others = [number for number in others if number != source.source_id]
    return dict(zip(others, other_colors(len(others))))


def _draw_tiles(axes: Any, tiles: list[_Tile], hues: dict[int, Color]) -> None:
    """Draws the outlines of tiles, with their letters at the upper left."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    margin = 0.01 * (right - left)
    for tile, letter in zip(tiles, _LETTERS):
        color = hues.get(tile.source.source_id, BLACK)
        draw_outline(axes, tile.outline, **outlined(color, linestyle='--', linewidth=0.9))
        x, y = tile.outline.min(dim=0).values.tolist()
        axes.text(
            min(max(x, left), right) + margin,
            min(max(y, top), bottom) + margin,
            letter,
            va='top',
            fontsize=8,
            weight='bold',
            color=color,
            path_effects=[WHITE_HALO],
        )


def _tiles_note(tiles: list[_Tile], source: Source) -> str:
    """Which image each tile shows, and what of it."""
    lines = ['dashed: the images it is made of, those that have instances in it']
    for tile, letter in zip(tiles, _LETTERS):
        name, count = textwrap.shorten(tile.source.name, 40, placeholder='...'), len(tile.rows)
        if tile.source.source_id == source.source_id:
            rows = ', '.join(f'#{row}' for row in sorted(tile.rows))
            name = textwrap.shorten(f'this source: {rows}', 70, placeholder=' ...')
        else:
            name += f': {count} box' + 'es' * (count != 1)
        lines.append(f'{letter}  {name}')
    if not any(tile.source.source_id == source.source_id for tile in tiles):
        lines.append('this source has no instance in it')
    return '\n'.join(lines)


def _matrix_note(replica: Replica) -> str:
    """The matrix of a replica."""
    if replica.matrix is not None:
        rows = (' '.join(f'{value:9.3f}' for value in row) for row in replica.matrix.tolist())
        return 'source to replica:\n' + '\n'.join(rows)
    if replica.instances is None:
        return 'no matrix: transforms of classifiers\nrecord no geometry'
    return 'no instance, and no single matrix: several images,\nor a transform that is not recorded'
