"""Tables and figures of a study: ``python tools/experiments/report.py STUDY``.

Reads what ``run.py`` recorded and writes ``table.md`` and a PNG for each figure that the
study names into the same folder. A figure of predictions needs the checkpoints of its runs,
and stays as it is without them.
"""

import argparse
import csv
import math
import runpy
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lt_mm.visualization.drawing import new_figure, save_figure

Rows = dict[str, list[dict[str, str]]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', type=Path, help='Python file with the runs')
    parser.add_argument(
        '--results',
        type=Path,
        help='folder of the CSV files (default: docs/studies/<name of the study>)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder of the checkpoints (default: work_dirs/studies/<name of the study>)',
    )
    args = parser.parse_args()
    args.results = args.results or Path('docs/studies') / args.study.stem
    args.work_dir = args.work_dir or Path('work_dirs/studies') / args.study.stem
    return args


def main() -> None:
    args = parse_args()
    study = runpy.run_path(str(args.study))
    runs = read(args.results / 'runs.csv')
    consistency = read(args.results / 'consistency.csv')
    (args.results / 'table.md').write_text(table(study, runs, consistency))
    for name, figure in study['figures'].items():
        out, metric = args.results / f'{name}.png', study['metric_name']
        if figure['kind'] == 'curves':
            draw_curves(figure, read(args.results / 'curves.csv'), metric, out)
        elif figure['kind'] == 'levels':
            draw_levels(figure, runs, metric, out)
        else:
            draw_matrices(figure, study, args.work_dir, out)
    print((args.results / 'table.md').read_text())


def read(path: Path) -> Rows:
    """The rows of a CSV file by run; none if there is no file."""
    rows = defaultdict(list)
    if path.exists():
        with open(path, newline='') as file:
            for row in csv.DictReader(file):
                rows[row['run']].append(row)
    return rows


def table(study: dict[str, Any], runs: Rows, consistency: Rows) -> str:
    """Markdown: a table for each section, a line for each run that has results."""
    lines = []
    headings = [
        'Run',
        'Images seen',
        'Seeds',
        study['metric_name'],
        'Difference to',
        '',
        *study['measured'].values(),
    ]
    for title, entries in study['sections'].items():
        lines += [f'### {title}', '', f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
        lines += [
            line(run, reference, runs, consistency, study['measured'])
            for run, reference in entries
            if run in runs
        ]
        lines.append('')
    return '\n'.join(lines)


def line(
    run: str, reference: str | None, runs: Rows, consistency: Rows, names: Iterable[str]
) -> str:
    values = column(runs[run], 'metric')
    difference = ''
    if reference in runs:
        difference = show_difference(values, column(runs[reference], 'metric'))
    measured = consistency.get(run, [])
    cells = [
        f'`{run}`',
        runs[run][0]['images'],
        str(len(values)),
        show(values),
        f'`{reference}`' if difference else '',
        difference,
        *(show(column(measured, name), 3) for name in names),
    ]
    return '| ' + ' | '.join(cells) + ' |'


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def show(values: list[float], digits: int = 1) -> str:
    """Mean and, with several seeds, their standard deviation."""
    if not values:
        return ''
    text = f'{statistics.fmean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text


def difference_of_means(values: list[float], others: list[float]) -> tuple[float, float | None]:
    """Difference of the means of independent runs and its standard error (Welch)."""
    difference = statistics.fmean(values) - statistics.fmean(others)
    if min(len(values), len(others)) < 2:
        return difference, None
    return difference, math.sqrt(
        statistics.variance(values) / len(values) + statistics.variance(others) / len(others)
    )


def show_difference(values: list[float], others: list[float]) -> str:
    difference, error = difference_of_means(values, others)
    return f'{difference:+.1f}' + ('' if error is None else f' (± {error:.1f})')


def draw_curves(figure: dict[str, Any], curves: Rows, metric: str, out: Path) -> None:
    """Metric and training loss over images seen: the mean over seeds, and their range."""
    drawing = new_figure(10, 3.6)
    panels = drawing.subplots(1, 2)
    for axes, key, label in zip(panels, ('metric', 'loss'), (metric, 'stock loss')):
        for run in figure['runs']:
            points = defaultdict(list)
            for row in curves.get(run, []):
                points[int(row['images'])].append(float(row[key]))
            if not points:
                continue
            images = sorted(points)
            axes.plot(
                images,
                [statistics.fmean(points[at]) for at in images],
                marker='o',
                markersize=3,
                label=run,
            )
            axes.fill_between(
                images,
                [min(points[at]) for at in images],
                [max(points[at]) for at in images],
                alpha=0.15,
            )
        axes.set(xlabel='images seen', ylabel=label)
    panels[0].legend(fontsize=8)
    save_figure(drawing, str(out))


def draw_levels(figure: dict[str, Any], runs: Rows, metric: str, out: Path) -> None:
    """Metric of runs over a setting; points are seeds, lines go through their means."""
    drawing = new_figure(5, 3.6)
    axes = drawing.subplots()
    for label, levels in figure['series'].items():
        levels = {
            level: column(runs[run], 'metric') for level, run in levels.items() if run in runs
        }
        color = axes.plot(
            list(levels), [statistics.fmean(v) for v in levels.values()], label=label
        )[0].get_color()
        for level, values in levels.items():
            axes.scatter([level] * len(values), values, s=12, color=color)
    if figure.get('log'):
        axes.set_xscale('log')
        axes.set_xticks(
            ticks := sorted({level for levels in figure['series'].values() for level in levels}),
            [str(level) for level in ticks],
        )
        axes.minorticks_off()
    axes.set(xlabel=figure['xlabel'], ylabel=metric)
    axes.legend(fontsize=8)
    save_figure(drawing, str(out))


def draw_matrices(figure: dict[str, Any], study: dict[str, Any], work_dir: Path, out: Path) -> None:
    """Predicted probabilities of augmented copies of images: a row of panels a run."""
    from lt_mm.apis.consistency import probability_matrix

    folders = {run: work_dir / run / f'seed{study["seeds"][0]}' for run in figure['runs']}
    missing = [run for run in folders if not (folders[run] / 'last_checkpoint').exists()]
    if missing:
        print(f'{out} is left as it is: no checkpoints of {missing} in {work_dir}')
        return
    images = figure['images']
    drawing = new_figure(2.6 * len(images) + 0.6, 2.6 * len(folders))
    grid = drawing.subplots(len(folders), len(images), squeeze=False)
    for panels, (run, folder) in zip(grid, folders.items()):
        for axes, image in zip(panels, images):
            config, settings = study['runs'][run][:2]
            matrix = probability_matrix(
                config,
                (folder / 'last_checkpoint').read_text(),
                image,
                cfg_options=settings,
                work_dir=str(folder / 'consistency'),
            )
            shown = axes.imshow(matrix, vmin=0, vmax=1, cmap='viridis', aspect='auto')
            axes.set(
                title=f'{run}, image {image}',
                xlabel='class',
                ylabel='copy',
                xticks=range(matrix.shape[1]),
            )
    drawing.colorbar(shown, ax=grid, label='probability')
    save_figure(drawing, str(out))


if __name__ == '__main__':
    main()
