"""Pictures of predictions that change from frame to frame."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from lt_mm.core.geometry import map_boxes
from lt_mm.core.measures.flicker import BoxChanges, BoxFlicker
from lt_mm.datasets.display import class_name
from lt_mm.visualization.drawing import (
    Color,
    colors,
    draw_boxes,
    new_figure,
    outlined,
    pixels_of,
    show_image,
)

_CHANGED: Color = (0.9, 0.0, 0.1)
_STEADY: Color = (0.0, 0.6, 0.25)
_MILLISECONDS = 350  # a frame


def box_frames(
    changes: Mapping[str, Sequence[BoxChanges]],
    images: Sequence[np.ndarray],
    matrices: Sequence[np.ndarray],
    classes: Sequence[str],
) -> list[np.ndarray]:
    """The frames of one image with the detections of several models beside each other.

    Detections that the frame before showed too are green, new ones red, and where one is gone there
    is a dashed red box. What reaches the border does not count and is thin white.

    Args:
        changes: For the title of each model what changed before each of the T frames.
        images: The frames, (H, W, 3) uint8 RGB.
        matrices: (3, 3) float64 each, from pixels of the source to those of the frame.
        classes: Names of the classes.

    Returns:
        T pictures, (h, w, 3) uint8 RGB.
    """
    height, width = images[0].shape[:2]
    totals = dict.fromkeys(changes, BoxFlicker())
    pictures = []
    for number, (image, matrix) in enumerate(zip(images, matrices)):
        figure = new_figure(4.2 * len(changes), 4.2 * height / width + 0.95)
        all_axes = figure.subplots(1, len(changes), squeeze=False)[0]
        for axes, (title, frames) in zip(all_axes, changes.items()):
            totals[title] = totals[title].plus(frames[number].sums())
            lost = totals[title].appearing + totals[title].vanishing
            show_image(axes, image)
            axes.set_title(title, fontsize=11)
            _draw_changes(axes, frames[number], matrix, classes)
            axes.set_xlabel(
                f'blinks so far: {lost}', fontsize=11, color=_CHANGED if lost else _STEADY
            )
        figure.suptitle(
            f'frame {number + 1} of {len(images)}    green: as before    red: new    '
            'dashed: gone    white: at the border, not counted',
            fontsize=9,
        )
        pictures.append(pixels_of(figure))
    return pictures


def _draw_changes(
    axes: Any, changes: BoxChanges, matrix: np.ndarray, classes: Sequence[str]
) -> None:
    found = changes.after
    is_steady = torch.zeros(len(found.boxes), dtype=torch.bool)
    is_steady[changes.matched[:, 1]] = True
    styles = [
        outlined(_CHANGED, 2.6) if new else outlined(_STEADY, 1.6) if steady else _border_style()
        for new, steady in zip(changes.appearing.tolist(), is_steady.tolist())
    ]
    names = [
        f'{class_name(classes, label)} {score:.2f}' if new or steady else ''
        for label, score, new, steady in zip(
            found.labels.tolist(),
            found.scores.tolist(),
            changes.appearing.tolist(),
            is_steady.tolist(),
        )
    ]
    draw_boxes(axes, _in_frame(found.boxes, matrix), styles, names)
    gone = _in_frame(changes.before.boxes[changes.vanishing], matrix)
    draw_boxes(axes, gone, [outlined(_CHANGED, 2.2, linestyle='--')] * len(gone))


def _border_style() -> dict[str, Any]:
    return dict(edgecolor='white', linewidth=0.7)


def _in_frame(boxes: Tensor, matrix: np.ndarray) -> Tensor:
    return map_boxes(boxes, torch.from_numpy(matrix).expand(len(boxes), 3, 3))


def save_animation(pictures: Sequence[np.ndarray], path: str) -> None:
    """Writes a GIF that plays for ever, and makes the folder that it lies in.

    Args:
        pictures: (h, w, 3) uint8 RGB, all of one size.
        path: The file.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    images = [Image.fromarray(picture) for picture in pictures]
    # One palette, or colours would flicker by themselves.
    palette = Image.fromarray(np.concatenate(pictures[:: max(len(pictures) // 4, 1)])).quantize(255)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [_MILLISECONDS] * (len(frames) - 1) + [4 * _MILLISECONDS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def class_strips(
    titles: Sequence[str],
    images: Sequence[Sequence[np.ndarray]],
    probabilities: Sequence[Sequence[np.ndarray]],
    classes: Sequence[str],
    heading: str = '',
) -> Figure:
    """The frames of images in rows, and below them a bar of the predicted classes of each model.

    A bar has a colour for each class, so that a steady prediction is a bar of one colour.

    Args:
        titles: A title for each model, a line.
        images: For each image its T frames, (H, W, 3) uint8 RGB.
        probabilities: For each image those of each model, (T, C).
        classes: Names of the classes.
        heading: What to say above all.
    """
    num_frames = len(images[0])
    rows = 1 + 0.45 * len(titles)
    # Room for the longest title, in frames.
    left = 0.3 + 0.1 * max(len('99 changes'), *map(len, titles))
    figure = new_figure(0.2 + 0.75 * (left + num_frames), 0.5 + 0.85 * rows * len(images))
    figure.suptitle(heading, fontsize=9)
    all_axes = figure.subplots(len(images), 1, squeeze=False)[:, 0]
    for axes, frames, predictions in zip(all_axes, images, probabilities):
        for number, image in enumerate(frames):
            axes.imshow(image, extent=(number + 0.03, number + 0.97, 0, 0.94))
        for place, (title, own) in enumerate(zip(titles, predictions)):
            _draw_bar(axes, -0.45 * place, own, classes)
            labels = own.argmax(axis=1)
            axes.text(
                -0.1,
                -0.45 * place - 0.2,
                f'{title}\n{(labels[1:] != labels[:-1]).sum()} changes',
                ha='right',
                va='center',
                fontsize=8,
            )
        axes.set(xlim=(-left, num_frames), ylim=(-0.45 * len(titles) - 0.05, 1), aspect='equal')
        axes.set_axis_off()
    return figure


def _draw_bar(axes: Any, top: float, probabilities: np.ndarray, classes: Sequence[str]) -> None:
    """The predicted class and its probability in each frame."""
    palette = colors(len(probabilities[0]))
    for number, row in enumerate(probabilities):
        label = int(row.argmax())
        axes.add_patch(
            Rectangle((number, top - 0.4), 1, 0.4, facecolor=palette[label], linewidth=0)
        )
        axes.text(
            number + 0.5,
            top - 0.2,
            f'{class_name(classes, label)[:10]}\n{100 * row[label]:.0f} %',
            ha='center',
            va='center',
            fontsize=6.5,
            color='white',
        )
