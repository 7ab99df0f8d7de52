"""Curves of several runs beside each other: ``tools/analysis/plot_logs.py``."""

import fnmatch
import json
import os.path as osp
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape, glob
from typing import Any

from matplotlib.lines import Line2D

from lt_mm.visualization.drawing import colors, new_figure, save_figure

# One dash pattern for each key of a panel.
_DASHES = (
    '-',
    '--',
    ':',
    '-.',
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
    (0, (7, 3)),
    (0, (3, 1, 1, 3)),
)
# Titles of panels, and what the keys in them look like.
_PANELS = (
    ('total loss', r'loss'),
    # Not those of a DETR's inner layers, encoder and denoising queries.
    ('stock losses', r'(?!.*lt_)(?!d\d|enc_|dn_).*loss_.+'),
    ('consistency terms, times rho', r'.*loss_(rpn_)?lt_.*'),
    ('consistency terms (KL)', r'.*lt_kl_.*'),
    ('paired predictions a step', r'.*lt_num_pairs'),
    ('paired share of the instances', r'.*lt_paired_share'),
)
# Metrics that are left out unless they are asked for: by size, and at other thresholds.
_MINOR_METRIC = re.compile(r'.*_(75|s|m|l)(_precision)?$')
_NOT_PLOTTED = {'epoch', 'iter', 'step'}


@dataclass
class Run:
    """What a run logged.

    Attributes:
        name: For the legend.
        curves: For each key the iterations, ascending, and the values there.
    """

    name: str
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    def __str__(self) -> str:
        last = max((xs[-1] for xs, _ in self.curves.values()), default=0)
        metrics = [
            f'{key} {values[-1]:.4g}'
            for key, (_, values) in self.curves.items()
            if '/' in key and not _MINOR_METRIC.match(key)
        ]
        return ', '.join([f'{self.name}: up to iteration {last}', *metrics])


def plot_logs(runs: Sequence[str], out: str, keys: Sequence[str] | None = None) -> list[Run]:
    """Plots what runs logged over the iterations: a panel a kind, a colour a run.

    Args:
        runs: Work dirs (of a run that was resumed, the later log counts where two
            overlap), folders of one start, or ``scalars.json`` files.
        out: PNG to write.
        keys: Keys to plot, a panel each, with wildcards (``'loss_lt_*'``); by default
            losses, terms, pairs and metrics that at least one run logged.

    Returns:
        What was read, in the order of ``runs``.

    Raises:
        FileNotFoundError: If there is no log.
        ValueError: If no run logged one of the keys, or a log cannot be read.
    """
    read = [Run(name, read_curves(path)) for name, path in zip(_names(runs), runs)]
    known = sorted({key for run in read for key in run.curves})
    panels = _default_panels(known) if keys is None else _wanted_panels(known, keys)
    if not panels:
        raise ValueError(
            f'{list(runs)} logged none of the usual keys, only '
            f'{known}; name some of these: --keys ...'
        )
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(5 * columns, 3.4 * rows + 0.3 + 0.2 * len(read))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    palette = colors(len(read))
    end = max((xs[-1] for run in read for xs, _ in run.curves.values()), default=0)
    for axes, (title, shown) in zip(grid, panels.items()):
        _draw_panel(axes, title, shown, read, palette)
        axes.set_xlim(0, 1.02 * end)
    figure.legend(
        [Line2D([], [], color=color) for color in palette],
        [run.name for run in read],
        loc='outside lower center',
        fontsize=8,
        ncols=max(1, min(len(read), 4)),
    )
    save_figure(figure, out)
    return read


def _draw_panel(
    axes: Any, title: str, keys: list[str], runs: list[Run], palette: Sequence[Any]
) -> None:
    for run, color in zip(runs, palette):
        for key, dashes in zip(keys, _DASHES * len(keys)):
            iterations, values = run.curves.get(key, ([], []))
            is_sparse = len(values) < 40
            axes.plot(
                iterations,
                values,
                color=color,
                linestyle=dashes,
                linewidth=1.2,
                marker='.' if is_sparse else None,
                markersize=4,
            )
    axes.set_title(title, fontsize=9)
    axes.set_xlabel('iteration', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if [title] != keys:
        axes.legend(
            [
                Line2D([], [], color='black', linestyle=dashes)
                for dashes in (_DASHES * len(keys))[: len(keys)]
            ],
            keys,
            fontsize=6,
        )


def _default_panels(known: list[str]) -> dict[str, list[str]]:
    panels = {
        title: [key for key in known if re.fullmatch(pattern, key)] for title, pattern in _PANELS
    }
    for key in known:
        evaluator, slash, _ = key.partition('/')
        if slash and not _MINOR_METRIC.match(key):
            panels.setdefault(f'validation: {evaluator}', []).append(key)
    return {title: keys for title, keys in panels.items() if keys}


def _wanted_panels(known: list[str], patterns: Sequence[str]) -> dict[str, list[str]]:
    panels = {pattern: fnmatch.filter(known, pattern) for pattern in patterns}
    missing = [pattern for pattern, keys in panels.items() if not keys]
    if missing:
        raise ValueError(f'no run logged {missing}; expected some of {known}')
    return panels


def read_curves(path: str) -> dict[str, tuple[list[int], list[float]]]:
    """What one run logged: for each key iterations, ascending, and values.

    A validation of an epoch-based run is logged by its epoch; it is put at the last
    iteration logged up to that epoch's end.

    Args:
        path: See :func:`plot_logs`.
    """
    trained: list[dict] = []
    validated: list[dict] = []
    for log in _logs_of(path):
        entries = _entries_of(log)
        new = [entry for entry in entries if 'iter' in entry]
        if new:
            # This start trained these iterations anew; what came after them is void.
            first = new[0]
            trained = [old for old in trained if old['iter'] < first['iter']]
            limit = first.get('epoch', first['iter'])
            validated = [old for old in validated if old['step'] < limit]
        trained += new
        validated += [entry for entry in entries if 'iter' not in entry]
    by_iteration = {entry['iter']: entry for entry in trained}
    points: dict[str, dict[int, float]] = {}
    for entry in by_iteration.values():
        _add_points(points, entry, entry['iter'])
    for entry in validated:
        _add_points(points, entry, _iteration_of(entry['step'], trained), only_metrics=True)
    return {
        key: (sorted(values), [values[x] for x in sorted(values)]) for key, values in points.items()
    }


def _add_points(
    points: dict[str, dict[int, float]], entry: dict, iteration: int, only_metrics: bool = False
) -> None:
    """Adds the numbers of an entry; of a validation not its time."""
    for key, value in entry.items():
        is_metric = key not in ('time', 'data_time', 'memory') or not only_metrics
        if key not in _NOT_PLOTTED and isinstance(value, (int, float)) and is_metric:
            points.setdefault(key, {})[iteration] = value


def _iteration_of(step: int, trained: list[dict]) -> int:
    """The iteration of a validation: its step, or the end of the epoch that it names."""
    if not any('epoch' in entry for entry in trained):
        return step
    return max((entry['iter'] for entry in trained if entry['epoch'] <= step), default=0)


def _logs_of(path: str) -> list[str]:
    """The ``scalars.json`` of all starts of a run, the oldest first."""
    if osp.isfile(path):
        return [path]
    # Folders of starts are named by their time.
    found = sorted(
        glob(osp.join(escape(path), '*', 'vis_data', 'scalars.json'))
        or glob(osp.join(escape(path), 'vis_data', 'scalars.json'))
    )
    if not found:
        raise FileNotFoundError(
            f'{path} holds no log; expected a work dir with <time>/vis_data/'
            'scalars.json, which MMEngine writes with LocalVisBackend, or such a file'
        )
    return found


def _entries_of(log: str) -> list[dict]:
    with open(log) as file:
        lines = [line for line in file if line.strip()]
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):  # a run that is writing, or was killed so
                break
            raise ValueError(
                f'line {number} of {log} is no json ({error}); expected a '
                'scalars.json as MMEngine writes it'
            ) from error
    return entries


def _names(paths: Sequence[str]) -> list[str]:
    """Paths without what they all have in common."""
    full = [osp.abspath(path) for path in paths]
    if len(full) == 1:
        return [osp.basename(full[0])]
    common = osp.commonpath(full)
    return [osp.relpath(path, common) if path != common else osp.basename(path) for path in full]
