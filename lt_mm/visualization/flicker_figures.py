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
from lt_mm.core.measures.flicker import BoxChanges, BoxFlicker, box_changes
from lt_mm.datasets.display import class_name
from lt_mm.evaluation.flicker_metric import FlickerMetric, frame_detections
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
    metrics: Sequence[FlickerMetric],
    titles: Sequence[str],
    source_id: int,
    images: Sequence[np.ndarray],
    classes: Sequence[str],
) -> list[np.ndarray]:
    """The frames of one image with the detections of several models beside each other.

    Detections that the frame before showed too are green, new ones red, and where one is gone there
    is a dashed red box. What reaches the border does not count and is thin white.

    Args:
        metrics: The metric of each model, after its evaluation.
        titles: A title for each model.
        source_id: The image.
        images: Its T frames, (H, W, 3) uint8 RGB.
        classes: Names of the classes.

    Returns:
        T pictures, (h, w, 3) uint8 RGB.
    """
    height, width = images[0].shape[:2]
    totals = [BoxFlicker() for _ in metrics]
    pictures = []
    for number, image in enumerate(images):
        figure = new_figure(4.2 * len(metrics), 4.2 * height / width + 0.75)
        all_axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for place, (axes, metric) in enumerate(zip(all_axes, metrics)):
            frames = metric.sequences[source_id]
            changes = _changes_at(metric, frames, number)
            if number:
                totals[place] = totals[place].plus(changes.sums())
            lost = totals[place].appearing + totals[place].vanishing
            show_image(axes, image)
            axes.set_title(titles[place], fontsize=11)
            _draw_changes(axes, changes, frames[number]['frame_matrix'], classes, bool(number))
            axes.set_xlabel(
                f'blinks so far: {lost}', fontsize=11, color=_CHANGED if lost else _STEADY
            )
        figure.suptitle(
            f'frame {number + 1} of {len(images)}    green: as before    red: new    dashed: gone',
            fontsize=9,
        )
        pictures.append(pixels_of(figure))
    return pictures


def _changes_at(metric: FlickerMetric, frames: Sequence[dict], number: int) -> BoxChanges:
    """What changes from the frame before to a frame; of the first one, nothing."""
    before, after = (frame_detections(frames[each]) for each in (max(number - 1, 0), number))
    return box_changes(before, after, metric.iou_threshold, metric.margin)


def _draw_changes(
    axes: Any, changes: BoxChanges, matrix: np.ndarray, classes: Sequence[str], has_before: bool
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
    if has_before:
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
    metrics: Sequence[FlickerMetric],
    titles: Sequence[str],
    strips: Mapping[int, Sequence[np.ndarray]],
    classes: Sequence[str],
) -> Figure:
    """The frames of images in rows, and below them a bar of the predicted classes of each model.

    A bar has a colour for each class, so that a steady prediction is a bar of one colour.

    Args:
        metrics: The metric of each model, after its evaluation.
        titles: A title for each model.
        strips: For each source id its T frames, (H, W, 3) uint8 RGB.
        classes: Names of the classes.
    """
    num_frames = len(next(iter(strips.values())))
    rows = 1 + 0.45 * len(metrics)
    figure = new_figure(1.5 + 0.75 * num_frames, 0.3 + 0.85 * rows * len(strips))
    all_axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for axes, (source, images) in zip(all_axes, strips.items()):
        for number, image in enumerate(images):
            axes.imshow(image, extent=(number + 0.03, number + 0.97, 0, 0.94))
        for place, metric in enumerate(metrics):
            top = -0.45 * place
            probabilities = [frame['probabilities'] for frame in metric.sequences[source]]
            _draw_bar(axes, top, probabilities, classes)
            changes = metric.images[source]['label_changes'] or 0
            axes.text(
                -0.1,
                top - 0.2,
                f'{titles[place]}\n{round(changes * (num_frames - 1))} changes',
                ha='right',
                va='center',
                fontsize=8,
            )
        axes.set(xlim=(-0.1, num_frames), ylim=(-0.45 * len(metrics) - 0.05, 1), aspect='equal')
        axes.set_axis_off()
    return figure


def _draw_bar(
    axes: Any, top: float, probabilities: Sequence[np.ndarray], classes: Sequence[str]
) -> None:
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
