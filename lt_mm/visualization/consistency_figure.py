"""A figure of how alike predictions for augmented copies of images are."""

import os.path as osp
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from lt_mm.datasets.display import class_name
from lt_mm.visualization.drawing import new_figure

_COLOR, _LINE = '#4878a8', '#c44e52'
_SMALLEST_KL = 1e-6  # nats; smaller ones are drawn as this one
_MOST_CLASSES = 20
_SETTINGS = dict(
    unaugmented='image\nas it is',
    single_replicas='single\nreplicas',
    averaged_replicas='mean of\nreplicas',
    tta='with\nstock TTA',
)
Panel = Callable[[Axes, Mapping[str, Any]], None]


def consistency_figure(report: Mapping[str, Any]) -> Figure:
    """Draws a report.

    Of classifiers: the KL of each image, the agreement of each class, the stock metric
    of single and averaged predictions, and below them the probabilities predicted for
    the replicas of a few images, a row for each replica. Of detectors: the overlap and
    the share of matched boxes in each image, the agreement of each class, and the stock
    metric without and with test-time augmentation.

    Args:
        report: What :func:`lt_mm.apis.consistency.measure_consistency` returns.
    """
    examples = report['examples']
    heights = [3.8] + [1.6 + 0.26 * report['num_replicas']] * bool(examples)
    figure = new_figure(14, sum(heights))
    top, *below = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_panels(top, report)
    if examples:
        _draw_examples(below[0], examples, report['classes'])
    return figure


def _draw_panels(figure: SubFigure, report: Mapping[str, Any]) -> None:
    files = ', '.join(osp.basename(report[key]) for key in ('config', 'checkpoint'))
    figure.suptitle(
        f'{files}: {report["num_replicas"]} replicas of each of '
        f'{report["num_images"]} images, seed {report["seed"]}',
        fontsize=10,
    )
    panels = _panels_of(report)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        axes.spines[['top', 'right']].set_visible(False)
        axes.tick_params(labelsize=8)
        panel(axes, report)


def _panels_of(report: Mapping[str, Any]) -> list[Panel]:
    panels: list[Panel] = [
        partial(_draw_shares, key='mean_iou', title='IoU of matched boxes with their mean box'),
        partial(_draw_shares, key='matched_share', title='boxes that match one of another replica'),
    ]
    if report['task'] == 'classification':
        panels = [_draw_kl]
    if report['per_class']:
        panels.append(_draw_agreement)
    if report['stock']:
        panels.append(_draw_stock)
    return panels


def _draw_kl(axes: Axes, report: Mapping[str, Any]) -> None:
    kl = np.array([image['mean_kl'] for image in report['images']]).clip(_SMALLEST_KL)
    axes.hist(kl, bins=np.geomspace(kl.min() / 1.1, kl.max() * 1.1, 31).tolist(), color=_COLOR)
    axes.set_xscale('log')
    axes.axvline(max(report['mean_kl'], _SMALLEST_KL), color=_LINE)
    floor = f', {_SMALLEST_KL:g} where it is smaller' * bool(kl.min() == _SMALLEST_KL)
    _label(
        axes,
        f'KL of the mean prediction to each\nmean {report["mean_kl"]:.3g} nats (line)',
        f'mean of an image, nats{floor}',
    )
    _count_images(axes)


def _draw_shares(axes: Axes, report: Mapping[str, Any], key: str, title: str) -> None:
    """A histogram over the images of a value in [0, 1]."""
    values = [image[key] for image in report['images'] if image[key] is not None]
    axes.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=_COLOR)
    mean = 'none'
    if report[key] is not None:
        axes.axvline(report[key], color=_LINE)
        mean = f'{report[key]:.3f} (line)'
    axes.set_xlim(0, 1)
    _label(axes, f'{title}\nof all: {mean}', 'mean of an image')
    _count_images(axes)


def _draw_agreement(axes: Axes, report: Mapping[str, Any]) -> None:
    found = sorted(report['per_class'].items(), key=lambda item: item[1]['agreement'])
    shown = found[:_MOST_CLASSES]
    if len(found) <= _MOST_CLASSES:
        shown = list(report['per_class'].items())
    names = [f'{name} ({own["count"]})' for name, own in shown]
    axes.barh(range(len(shown)), [own['agreement'] for _, own in shown], color=_COLOR)
    axes.set_yticks(range(len(shown)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.axvline(report['agreement'], color=_LINE)
    which = 'each class' if len(shown) == len(found) else f'the {len(shown)} least alike'
    title = f'agreement of {which} (count)\nof all: {report["agreement"]:.3f} (line)'
    _label(axes, title, 'share of pairs with the same class')


def _draw_stock(axes: Axes, report: Mapping[str, Any]) -> None:
    found = {
        _SETTINGS[setting]: metrics
        for setting, metrics in report['stock'].items()
        if not isinstance(metrics, str)
    }
    name = next(iter(found[_SETTINGS['unaugmented']]))
    values = [metrics[name] for metrics in found.values()]
    bars = axes.bar(range(len(found)), values, color=_COLOR, width=0.6)
    axes.bar_label(bars, [f'{value:.4g}' for value in values], fontsize=8)
    axes.set_xticks(range(len(found)), found)
    _label(axes, f'{name}\nstock evaluation')


def _draw_examples(
    figure: SubFigure, examples: list[Mapping[str, Any]], classes: list[str]
) -> None:
    figure.suptitle(
        'Predicted probabilities, a row for each replica, of images from '
        'the median KL (left) to the largest',
        fontsize=9,
    )
    places = figure.subplots(1, len(examples), squeeze=False)[0]
    for axes, example in zip(places, examples):
        shown, names = _most_probable(np.array(example['probabilities']), classes)
        picture = axes.imshow(shown, vmin=0, vmax=1, cmap='viridis', aspect='auto')
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(shown)), range(1, len(shown) + 1), fontsize=7)
        name = osp.join(
            *(example['img_path'] or f'image {example["source_id"]}').split(osp.sep)[-2:]
        )
        axes.set_title(f'{name}\nKL {example["mean_kl"]:.3g}', fontsize=8)
    figure.colorbar(picture, ax=places, shrink=0.9, pad=0.01)


def _most_probable(probabilities: np.ndarray, classes: list[str]) -> tuple[np.ndarray, list[str]]:
    """Columns (m, c) of at most so many classes as fit, and their names."""
    columns = np.arange(probabilities.shape[1])
    if len(columns) > _MOST_CLASSES:
        columns = np.sort(np.argsort(-probabilities.mean(axis=0))[:_MOST_CLASSES])
    return probabilities[:, columns], [class_name(classes, column) for column in columns]


def _count_images(axes: Axes) -> None:
    """Whole numbers on the axis of a histogram."""
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel('images', fontsize=8)


def _label(axes: Axes, title: str, x: str = '') -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
