"""What the figures share: figures without a window, images, boxes, masks, colours."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

_DPI = 110
Color = tuple[float, float, float]
GREY: Color = (0.35, 0.35, 0.35)
BLACK: Color = (0.0, 0.0, 0.0)
WHITE_HALO = patheffects.withStroke(linewidth=2, foreground='white')
_ROOM_OF_NAME = 0.045  # height of a name as a share of the picture


class NoDisplayError(RuntimeError):
    """There is no screen to open a window on."""


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` x ``height`` inches that opens no window."""
    return Figure(figsize=(width, height), dpi=_DPI, layout='constrained')


def save_figure(figure: Figure, path: str) -> None:
    """Writes a PNG, and makes the folder that it lies in."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def pixels_of(figure: Figure) -> np.ndarray:
    """The figure as (H, W, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def check_display() -> None:
    """Makes sure that a window can be opened.

    Raises:
        NoDisplayError: If no window can be opened.
    """
    # The import chooses a window system, which nothing else here needs.
    from matplotlib import pyplot

    if pyplot.get_backend().lower() == 'agg':
        raise NoDisplayError(
            "matplotlib found no display to open a window on (its backend is 'agg', "
            f'DISPLAY is {os.environ.get("DISPLAY")!r}); write files instead: --out DIR'
        )


def show_in_window(figure: Figure, title: str) -> None:
    """Shows a figure and waits until its window is closed; see :func:`check_display`."""
    from matplotlib import pyplot

    window = pyplot.figure(title, figsize=figure.get_size_inches())
    axes = window.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pixels_of(figure))
    pyplot.show()


def colors(count: int) -> list[Color]:
    """So many colours; they are repeated after 20."""
    palette = colormaps['tab10']
    bright = [palette(number)[:3] for number in range(palette.N)]
    # Not the pale ones of tab20, which white names and light pictures would swallow.
    dark = [(0.6 * red, 0.6 * green, 0.6 * blue) for red, green, blue in bright]
    return [(bright + dark)[number % 20] for number in range(count)]


def other_colors(count: int) -> list[Color]:
    """Colours that differ from those of :func:`colors` where these are few."""
    palette = colormaps['Dark2']
    return [palette(number % palette.N)[:3] for number in range(count)]


def outlined(color: Any, linewidth: float, **style: Any) -> dict[str, Any]:
    """The style of a thin line that can be seen on any picture.

    Args:
        color: Of the line; its outline is black where this is 'white', and white else.
        linewidth: Points.
        style: Further arguments of a matplotlib patch.
    """
    outline = 'black' if color == 'white' else 'white'
    effect = patheffects.withStroke(linewidth=linewidth + 0.8, foreground=outline)
    # Snapped to pixels, the line would lie beside its outline.
    return dict(edgecolor=color, linewidth=linewidth, path_effects=[effect], snap=False, **style)


def group_styles(
    group_ids: Sequence[int], is_paired: Sequence[bool], linewidth: float = 1.3
) -> list[dict[str, Any]]:
    """Styles for boxes that pair: a colour for each group, dashed grey for the unpaired.

    Args:
        group_ids: The group of each box.
        is_paired: Whether each box has a partner in its group.
        linewidth: Of the boxes that are paired, in points.
    """
    groups = sorted({group for group, paired in zip(group_ids, is_paired) if paired})
    own = dict(zip(groups, colors(len(groups))))
    return [
        dict(edgecolor=own[group], linewidth=linewidth)
        if paired
        else outlined(GREY, linewidth=0.9, linestyle='--')
        for group, paired in zip(group_ids, is_paired)
    ]


def show_image(axes: Any, image: np.ndarray, title: str = '', note: str = '') -> None:
    """Fills the axes with an image, in edge coordinates, and writes above and below it.

    Args:
        axes: Axes of matplotlib.
        image: (H, W, 3), or (H, W, 4) with opacity.
        title: The text above it.
        note: The text below it, small and monospaced.
    """
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(note, fontsize=6.5, family='monospace', loc='left')


def draw_boxes(
    axes: Any, boxes: Any, styles: Sequence[dict], names: Sequence[str] | None = None
) -> None:
    """Draws boxes, and names beside them.

    Args:
        axes: Axes of matplotlib.
        boxes: (n, 4) tensor or array, xyxy in pixels of the image shown.
        styles: For each box the arguments of a matplotlib Rectangle.
        names: A name for each box; '' for none.
    """
    for (x1, y1, x2, y2), style in zip(boxes.tolist(), styles):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))
    if names is not None:
        draw_names(axes, boxes, names, [style['edgecolor'] for style in styles])


def draw_names(axes: Any, boxes: Any, names: Sequence[str], fills: Sequence[Color]) -> None:
    """Writes names beside the boxes that can be seen.

    A name stands above its box, or below it where there is no room above: neither on the box nor
    outside the picture.

    Args:
        axes: Axes of matplotlib.
        boxes: (n, 4) tensor or array, xyxy in pixels of the image shown.
        names: A name for each box; '' for none.
        fills: The colour behind each name.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    room = _ROOM_OF_NAME * (bottom - top)
    for (x1, y1, x2, y2), name, fill in zip(boxes.tolist(), names, fills):
        if not (name and x1 < right and x2 > left and y1 < bottom and y2 > top):
            continue
        is_above, at_right = y1 - top > room, x1 > left + 0.8 * (right - left)
        axes.text(
            min(x2, right) if at_right else max(x1, left),
            y1 if is_above else min(y2, bottom - room),
            name,
            ha='right' if at_right else 'left',
            va='bottom' if is_above else 'top',
            fontsize=5.5,
            color='white',
            clip_on=True,
            bbox=dict(facecolor=fill, pad=0.4, linewidth=0, alpha=0.75),
        )


def draw_outline(axes: Any, corners: Any, **style: Any) -> None:
    """Draws a closed line through corners (k, 2); pixels of the image shown."""
    axes.add_patch(Polygon(corners.tolist(), fill=False, **style))


def draw_masks(axes: Any, masks: np.ndarray, fills: Sequence[Color]) -> None:
    """Tints the pixels of masks.

    Args:
        axes: Axes of matplotlib.
        masks: (n, H, W) bool.
        fills: A colour for each mask.
    """
    if len(masks) == 0:
        return
    tint = np.zeros((*masks.shape[1:], 4))
    for mask, fill in zip(masks, fills):
        tint[mask] = (*fill, 0.35)
    height, width = tint.shape[:2]
    axes.imshow(tint, extent=(0, width, height, 0))
