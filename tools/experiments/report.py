"""Tables and figures of a study: ``python tools/experiments/report.py STUDY``.

Reads what ``run.py`` recorded and writes ``table.md`` and a PNG for each figure that the
study names into the same folder.
"""
import argparse
import csv
import math
import runpy
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Rows = Dict[str, List[Dict[str, str]]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', type=Path, help='Python file with the runs')
    parser.add_argument('--results', type=Path, help='folder of the CSV files '
                        '(default: docs/studies/<name of the study>)')
    args = parser.parse_args()
    args.results = args.results or Path('docs/studies') / args.study.stem
    return args


def main() -> None:
    args = parse_args()
    study = runpy.run_path(str(args.study))
    runs = read(args.results / 'runs.csv')
    consistency = read(args.results / 'consistency.csv')
    (args.results / 'table.md').write_text(table(study, runs, consistency))
    for name, figure in study['figures'].items():
        draw = dict(curves=draw_curves, levels=draw_levels)[figure['kind']]
        source = read(args.results / 'curves.csv') if figure['kind'] == 'curves' else runs
        draw(figure, source, study['metric_name'], args.results / f'{name}.png')
    print((args.results / 'table.md').read_text())


def read(path: Path) -> Rows:
    """The rows of a CSV file by run; none if there is no file."""
    rows = defaultdict(list)
    if path.exists():
        with open(path, newline='') as file:
            for row in csv.DictReader(file):
                rows[row['run']].append(row)
    return rows


def table(study: Dict[str, Any], runs: Rows, consistency: Rows) -> str:
    """Markdown: a table for each section, a line for each run that has results."""
    lines = []
    for title, entries in study['sections'].items():
        lines += [f'### {title}', '',
                  f'| Run | Images seen | Seeds | {study["metric_name"]} | Difference to | '
                  '| KL to the mean | Agreement |', '|---|---|---|---|---|---|---|---|']
        lines += [line(run, reference, runs, consistency) for run, reference in entries
                  if run in runs]
        lines.append('')
    return '\n'.join(lines)


def line(run: str, reference: Optional[str], runs: Rows, consistency: Rows) -> str:
    values = column(runs[run], 'metric')
    difference = ''
    if reference in runs:
        difference = show_difference(values, column(runs[reference], 'metric'))
    measured = consistency.get(run, [])
    cells = [f'`{run}`', runs[run][0]['images'], str(len(values)), show(values),
             f'`{reference}`' if difference else '', difference,
             show(column(measured, 'mean_kl'), 3), show(column(measured, 'agreement'), 3)]
    return '| ' + ' | '.join(cells) + ' |'


def column(rows: List[Dict[str, str]], name: str) -> List[float]:
    return [float(row[name]) for row in rows if row[name]]


def show(values: List[float], digits: int = 1) -> str:
    """Mean and, with several seeds, their standard deviation."""
    if not values:
        return ''
    text = f'{statistics.fmean(values):.{digits}f}'
    if len(values) > 1:
        text += f' ± {statistics.stdev(values):.{digits}f}'
    return text


def difference_of_means(values: List[float], others: List[float]
                        ) -> Tuple[float, Optional[float]]:
    """Difference of the means of independent runs and its standard error (Welch)."""
    difference = statistics.fmean(values) - statistics.fmean(others)
    if min(len(values), len(others)) < 2:
        return difference, None
    return difference, math.sqrt(statistics.variance(values) / len(values)
                                 + statistics.variance(others) / len(others))


def show_difference(values: List[float], others: List[float]) -> str:
    difference, error = difference_of_means(values, others)
    return f'{difference:+.1f}' + ('' if error is None else f' (± {error:.1f})')


def draw_curves(figure: Dict[str, Any], curves: Rows, metric: str, out: Path) -> None:
    """Metric and training loss over images seen: the mean over seeds, and their range."""
    canvas, panels = new_figure(2)
    for axes, key, label in zip(panels, ('metric', 'loss'), (metric, 'stock loss')):
        for run in figure['runs']:
            points = defaultdict(list)
            for row in curves.get(run, []):
                points[int(row['images'])].append(float(row[key]))
            if not points:
                continue
            images = sorted(points)
            axes.plot(images, [statistics.fmean(points[at]) for at in images],
                      marker='o', markersize=3, label=run)
            axes.fill_between(images, [min(points[at]) for at in images],
                              [max(points[at]) for at in images], alpha=0.15)
        axes.set(xlabel='images seen', ylabel=label)
    panels[0].legend(fontsize=8)
    canvas.print_png(str(out))


def draw_levels(figure: Dict[str, Any], runs: Rows, metric: str, out: Path) -> None:
    """Metric of runs over a setting; points are seeds, lines go through their means."""
    canvas, (axes, ) = new_figure(1)
    for label, levels in figure['series'].items():
        levels = {level: column(runs[run], 'metric') for level, run in levels.items()
                  if run in runs}
        color = axes.plot(list(levels), [statistics.fmean(v) for v in levels.values()],
                          label=label)[0].get_color()
        for level, values in levels.items():
            axes.scatter([level] * len(values), values, s=12, color=color)
    if figure.get('log'):
        axes.set_xscale('log')
        axes.set_xticks(ticks := sorted({level for levels in figure['series'].values()
                                         for level in levels}),
                        [str(level) for level in ticks])
        axes.minorticks_off()
    axes.set(xlabel=figure['xlabel'], ylabel=metric)
    axes.legend(fontsize=8)
    canvas.print_png(str(out))


def new_figure(panels: int) -> Tuple[FigureCanvasAgg, Tuple]:
    figure = Figure(figsize=(5 * panels, 3.6), dpi=110, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    return canvas, tuple(figure.subplots(1, panels, squeeze=False)[0])


if __name__ == '__main__':
    main()
