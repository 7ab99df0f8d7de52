"""Runs the benchmarks and writes a table and a plot.

    python tools/benchmarks/run.py [NAMES...] [--quick] [--device cuda] [--threads 2]

A benchmark is a module beside this file. Writes ``table.md``, ``table.csv`` and
``plot.png`` into ``work_dirs/benchmarks``. The exit code is 1 where a benchmark failed,
not where a target is missed.
"""

import argparse
import importlib
import pkgutil
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lt_mm.visualization.drawing import new_figure, save_figure

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY))
from tools.benchmarks.timing import Timer, machine  # noqa: E402 (after the path to it)

NAMES = sorted({module.name for module in pkgutil.iter_modules([str(HERE)])} - {'run', 'timing'})
PANELS_A_LINE = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'names', nargs='*', metavar='NAMES', help=f'of {", ".join(NAMES)}; all unless given'
    )
    parser.add_argument('--quick', action='store_true', help='small sizes, few rounds')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, help='of torch on the CPU')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'work_dirs' / 'benchmarks')
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f'no benchmark {", ".join(unknown)}; there are {", ".join(NAMES)}')
    if args.threads:
        torch.set_num_threads(args.threads)

    timer = Timer(args.device, args.quick)
    where = machine(timer.device) + (', small sizes (--quick)' if args.quick else '')
    print(where)
    rows: list[dict[str, Any]] = []
    failed = []
    for name in args.names or NAMES:
        print(f'{name} ...', flush=True)
        try:
            module = importlib.import_module(f'tools.benchmarks.{name}')
            measured = module.measure(timer, args.quick)
        except Exception:  # the others are to run all the same
            traceback.print_exc()
            failed.append(name)
            continue
        rows += [dict(asdict(row), benchmark=name) for row in measured]
        write(args.out, where, pd.DataFrame(rows))
    if rows:
        print((args.out / 'table.md').read_text(encoding='utf-8'))
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return bool(failed)


def write(out: Path, where: str, rows: pd.DataFrame) -> None:
    """Writes the table, as markdown and as CSV, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    (out / 'table.md').write_text(f'{where}\n\n' + markdown(rows), encoding='utf-8')
    rows.to_csv(out / 'table.csv', index=False)
    plot(out / 'plot.png', rows)


def markdown(rows: pd.DataFrame) -> str:
    """A line for each row that is no point of a curve; quartiles in brackets."""
    lines = [
        '| Benchmark | What | Against | Median [quartiles] | Target | Note |',
        '|---|---|---|---|---|---|',
    ]
    for row in rows[rows.curve == ''].itertuples():
        met = {True: ' met', False: ' **missed**'}.get(row.met, '')
        lines.append(
            f'| {row.benchmark} | {row.what} | {row.against} | {row.ratio:.3g} {row.unit} '
            f'[{row.low:.3g}, {row.high:.3g}] | {row.target}{met} | {row.note} |'
        )
    return '\n'.join(lines) + '\n'


def plot(path: Path, rows: pd.DataFrame) -> None:
    """Ratios as bars with their targets, and a panel for each family of curves."""
    bars = rows[(rows.target != '') & (rows.unit != 'exponent')]
    panels = rows[rows.curve != ''].groupby('curve')
    lines = -(-len(panels) // PANELS_A_LINE)
    heights = [0.5 + 0.3 * len(bars), *[3.5] * lines]
    figure = new_figure(5 * PANELS_A_LINE, sum(heights))
    grid = figure.add_gridspec(1 + lines, PANELS_A_LINE, height_ratios=heights)
    _draw_bars(figure.add_subplot(grid[0, :]), bars)
    for index, (panel, points) in enumerate(panels):
        line, column = divmod(index, PANELS_A_LINE)
        _draw_curves(figure.add_subplot(grid[1 + line, column]), panel, points)
    save_figure(figure, str(path))


def _draw_bars(axes: Any, bars: pd.DataFrame) -> None:
    for y, row in enumerate(bars.itertuples()):
        axes.barh(y, row.ratio, color='tab:green' if row.met else 'tab:red', height=0.6)
        axes.plot([row.low, row.high], [y, y], color='black')
        bound = float(row.target.split()[1])
        axes.plot([bound, bound], [y - 0.4, y + 0.4], color='black', linestyle='--')
    names = (bars.what + ' / ' + bars.against).str.removesuffix(' / ')
    axes.set_yticks(range(len(bars)), names)
    axes.invert_yaxis()
    if len(bars):
        axes.set_xscale('log')
    axes.set_title('median, quartiles (line) and target (dashed)', fontsize=10)


def _draw_curves(axes: Any, panel: str, rows: pd.DataFrame) -> None:
    for what, points in rows.sort_values('x').groupby('what', sort=False):
        axes.loglog(points.x, points.ratio, marker='o', markersize=3, label=what)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high / 10), high)  # noise on a flat curve is to look flat
    axes.tick_params(axis='x', which='minor', labelbottom=False)
    axes.set_title(panel, fontsize=9)
    axes.set_ylabel(rows.unit.iloc[0])
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=7)


if __name__ == '__main__':
    sys.exit(main())
