"""Tables and figures of a study: ``python tools/experiments/report.py STUDY``.

Reads what ``run.py`` recorded and writes ``table.md`` and a PNG for each figure that the
study names into the same folder. A figure of predictions needs the checkpoints of its runs,
and stays as it is without them.
"""

import argparse
import runpy
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from lt_mm.visualization.drawing import new_figure, save_figure


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
    runs = without_pilots(study, read(args.results / 'runs.csv'))
    consistency = without_pilots(study, read_measured(args.results))
    text = table(study, runs, consistency) + test_table(study, read(args.results / 'test.csv'))
    (args.results / 'table.md').write_text(text, encoding='utf-8')
    for name, figure in study['figures'].items():
        out, metric = args.results / f'{name}.png', study['metric_name']
        if figure['kind'] == 'curves':
            draw_curves(figure, read(args.results / 'curves.csv'), metric, out)
        elif figure['kind'] == 'levels':
            draw_levels(figure, runs, metric, out)
        else:
            draw_matrices(figure, study, args.work_dir, out)
    print((args.results / 'table.md').read_text(encoding='utf-8'))


def read(path: Path) -> pd.DataFrame:
    """The rows of a CSV file, indexed by run; none if there is no file."""
    if not path.exists():
        return pd.DataFrame()
    return pd.read_csv(path, index_col='run', float_precision='round_trip')


def without_pilots(study: dict[str, Any], rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the seeds of the study, and those of other seeds for runs that have no others."""
    if rows.empty:
        return rows
    own = rows.seed.isin(study['seeds'])
    return rows[own | ~rows.index.isin(rows.index[own])]


def read_measured(results: Path) -> pd.DataFrame:
    """All that was measured of the trained models, a row for each run and seed."""
    found = pd.DataFrame()
    for name in ('consistency', 'steadiness', 'corruptions'):
        rows = read(results / f'{name}.csv')
        if len(rows):
            rows = rows.set_index('seed', append=True)
            found = rows if found.empty else found.join(rows, how='outer')
    return found.reset_index('seed') if len(found) else found


def table(study: dict[str, Any], runs: pd.DataFrame, consistency: pd.DataFrame) -> str:
    """Markdown: a table for each section, a line for each run that has results."""
    lines = []
    # What was not measured yet has no column.
    found = consistency.columns[consistency.notna().any()]
    measured = {key: title for key, title in study['measured'].items() if key in found}
    study = {**study, 'measured': measured}
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
        if not any(run in runs.index for run, _ in entries):
            continue
        lines += [f'### {title}', '', f'| {" | ".join(headings)} |', '|---' * len(headings) + '|']
        lines += [
            line(study, run, reference, runs, consistency)
            for run, reference in entries
            if run in runs.index
        ]
        lines.append('')
    return '\n'.join(lines)


def test_table(study: dict[str, Any], tested: pd.DataFrame) -> str:
    """Markdown: the metric on the test data of all runs that have it; empty without any.

    Beside the run that the first section with such an entry names.
    """
    if tested.empty:
        return ''
    entries = [entry for section in study['sections'].values() for entry in section]
    references = {run: reference for run, reference in reversed(entries) if reference}
    cells = []
    for run in study['runs']:
        if run in tested.index:
            own = show(tested.metric[tested.index == run])
            compared = ' | '.join(difference(study, tested, run, references.get(run)))
            cells.append(f'| `{run}` | {own} | {compared} |')
    heading = f'| Run | {study["metric_name"]} on the test data | Difference to |  |'
    return '\n'.join(['', '### Test data', '', heading, '|---' * 4 + '|', *cells, ''])


def difference(
    study: dict[str, Any], rows: pd.DataFrame, run: str, reference: str | None
) -> tuple[str, str]:
    """Cells: the run that this one is compared with, and the difference of their metric."""
    if reference not in rows.index:
        return '', ''
    return f'`{reference}`', difference_to(study, rows, run, reference, 'metric')


def line(
    study: dict[str, Any],
    run: str,
    reference: str | None,
    runs: pd.DataFrame,
    consistency: pd.DataFrame,
) -> str:
    own, measured = runs[runs.index == run], consistency[consistency.index == run]
    cells = [f'`{run}`', str(own.images.iloc[0]), str(len(own)), show(own.metric)]
    cells += difference(study, runs, run, reference)
    for name in study['measured']:
        cell = show(measured[name], 3) if len(measured) else ''
        if cell and study.get('paired') and reference in consistency.index:
            compared = difference_to(study, consistency, run, reference, name, 3)
            cell += f', {compared}' * bool(compared)
        cells.append(cell)
    return '| ' + ' | '.join(cells) + ' |'


def difference_to(
    study: dict[str, Any],
    rows: pd.DataFrame,
    run: str,
    reference: str | None,
    column: str,
    digits: int = 1,
) -> str:
    """The difference of two runs, with its standard error: paired by seed if the study says so."""
    own, others = rows[rows.index == run], rows[rows.index == reference]
    if study.get('paired'):
        difference = paired_difference(
            own.set_index('seed')[column], others.set_index('seed')[column]
        )
    else:
        difference = difference_of_means(own[column], others[column])
    return show_difference(*difference, digits=digits)


def show(values: pd.Series, digits: int = 1) -> str:
    """Mean and, with several seeds, their standard deviation; empty without a value."""
    values = values.dropna()
    if values.empty:
        return ''
    # fmean sums exactly: means of two decimals are often halves of the last digit shown.
    text = f'{fmean(values):.{digits}f}'
    return text + (f' ± {values.std():.{digits}f}' if len(values) > 1 else '')


def difference_of_means(values: pd.Series, others: pd.Series) -> tuple[float, float]:
    """Difference of the means of independent runs and its standard error (Welch).

    The error is NaN where one of them has a single value.
    """
    return fmean(values) - fmean(others), (values.sem() ** 2 + others.sem() ** 2) ** 0.5


def paired_difference(values: pd.Series, others: pd.Series) -> tuple[float, float]:
    """Mean difference of the runs of one seed, and its standard error; indexed by seed.

    Seeds that one of them lacks do not count. The error is NaN with a single seed, and both
    are with none.
    """
    differences = (values - others).dropna()
    return differences.mean(), differences.sem()


def show_difference(difference: float, error: float, digits: int = 1) -> str:
    """A difference and, where it is known, its standard error; empty without a difference."""
    if pd.isna(difference):
        return ''
    text = f'{difference:+.{digits}f}'
    return text + ('' if pd.isna(error) else f' (± {error:.{digits}f})')


def draw_curves(figure: dict[str, Any], curves: pd.DataFrame, metric: str, out: Path) -> None:
    """Metric and training loss over images seen: the mean over seeds, and their range."""
    drawing = new_figure(10, 3.6)
    panels = drawing.subplots(1, 2)
    for axes, key, label in zip(panels, ('metric', 'loss'), (metric, 'stock loss')):
        for run in figure['runs']:
            if run not in curves.index:
                continue
            points = curves[curves.index == run].groupby('images')[key].agg(['mean', 'min', 'max'])
            axes.plot(points['mean'], marker='o', markersize=3, label=run)
            axes.fill_between(points.index, points['min'], points['max'], alpha=0.15)
        axes.set(xlabel='images seen', ylabel=label)
    panels[0].legend(fontsize=8)
    save_figure(drawing, str(out))


def draw_levels(figure: dict[str, Any], runs: pd.DataFrame, metric: str, out: Path) -> None:
    """Metric of runs over a setting; points are seeds, lines go through their means."""
    drawing = new_figure(5, 3.6)
    axes = drawing.subplots()
    for label, levels in figure['series'].items():
        levels = {
            level: runs.metric[runs.index == run]
            for level, run in levels.items()
            if run in runs.index
        }
        means = [values.mean() for values in levels.values()]
        color = axes.plot(list(levels), means, label=label)[0].get_color()
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
