"""Runs the benchmarks and writes a table and a plot.

    python tools/benchmarks/run.py [NAMES...] [--quick] [--device cuda] [--threads 2]

A benchmark is a module beside this file. Writes ``table.md``, ``table.csv`` and
``plot.png`` into ``work_dirs/benchmarks``. The exit code is 1 where a benchmark failed,
not where a target is missed.
"""

import argparse
import csv
import importlib
import pkgutil
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

import torch
from timing import Row, Timer, machine

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / 'work_dirs' / 'benchmarks'
NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules([str(HERE)])
    if module.name not in ('run', 'timing')
)
PANELS_A_LINE = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'names', nargs='*', metavar='NAMES', help=f'of {", ".join(NAMES)}; all unless given'
    )
    parser.add_argument('--quick', action='store_true', help='small sizes, few rounds')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, help='of torch on the CPU')
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f'no benchmark {", ".join(unknown)}; there are {", ".join(NAMES)}')
    if args.threads:
        torch.set_num_threads(args.threads)

    timer = Timer(args.device, args.quick)
    print(machine(timer.device))
    rows, failed = {}, []
    for name in args.names or NAMES:
        print(f'{name} ...', flush=True)
        try:
            rows[name] = importlib.import_module(name).measure(timer, args.quick)
        except Exception:  # the others are to run all the same
            traceback.print_exc()
            failed.append(name)
        write(args.out, machine(timer.device), args.quick, rows)
    print((args.out / 'table.md').read_text())
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
    return bool(failed)


def write(out: Path, where: str, quick: bool, rows: dict[str, list[Row]]) -> None:
    """Writes the table, as markdown and as CSV, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    sizes = ', small sizes (--quick)' if quick else ''
    (out / 'table.md').write_text(f'{where}{sizes}\n\n' + markdown(rows))
    with open(out / 'table.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, ['benchmark', *Row.__dataclass_fields__, 'met'])
        writer.writeheader()
        for name, own in rows.items():
            writer.writerows(dict(asdict(row), benchmark=name, met=row.met) for row in own)
    plot(out / 'plot.png', [row for own in rows.values() for row in own])


def markdown(rows: dict[str, list[Row]]) -> str:
    """A line for each row that is no point of a curve; quartiles in brackets."""
    lines = [
        '| Benchmark | What | Against | Median [quartiles] | Target | Note |',
        '|---|---|---|---|---|---|',
    ]
    for name, own in rows.items():
        for row in own:
            if row.curve:
                continue
            target = row.target
            if row.met is not None:
                target += ' met' if row.met else ' **missed**'
            lines.append(
                f'| {name} | {row.what} | {row.against} | {row.ratio:.3g} {row.unit} '
                f'[{row.low:.3g}, {row.high:.3g}] | {target} | {row.note} |'
            )
    return '\n'.join(lines) + '\n'


def plot(path: Path, rows: list[Row]) -> None:
    """Ratios as bars with their targets, and a panel for each family of curves."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    bars = [row for row in rows if row.target and row.unit != 'exponent']
    panels = sorted({row.curve for row in rows if row.curve})
    if not bars and not panels:
        return
    lines = -(-len(panels) // PANELS_A_LINE)
    heights = [0.5 + 0.3 * len(bars), *[3.5] * lines]
    figure = plt.figure(figsize=(5 * PANELS_A_LINE, sum(heights)), layout='constrained')
    grid = figure.add_gridspec(1 + lines, PANELS_A_LINE, height_ratios=heights)
    _draw_bars(figure.add_subplot(grid[0, :]), bars)
    for index, panel in enumerate(panels):
        line, column = divmod(index, PANELS_A_LINE)
        _draw_curves(
            figure.add_subplot(grid[1 + line, column]),
            panel,
            [row for row in rows if row.curve == panel],
        )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_bars(axes, bars: list[Row]) -> None:
    for y, row in enumerate(bars):
        axes.barh(y, row.ratio, color='tab:green' if row.met else 'tab:red', height=0.6)
        axes.plot([row.low, row.high], [y, y], color='black')
        bound = float(row.target.split()[1])
        axes.plot([bound, bound], [y - 0.4, y + 0.4], color='black', linestyle='--')
    axes.set_yticks(
        range(len(bars)),
        [f'{row.what} / {row.against}' if row.against else row.what for row in bars],
    )
    axes.invert_yaxis()
    if bars:
        axes.set_xscale('log')
    axes.set_title('median, quartiles (line) and target (dashed)', fontsize=10)


def _draw_curves(axes, panel: str, rows: list[Row]) -> None:
    for what in dict.fromkeys(row.what for row in rows):
        points = sorted((row.x, row.ratio) for row in rows if row.what == what)
        axes.loglog(*zip(*points), marker='o', markersize=3, label=what)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high / 10), high)  # noise on a flat curve is to look flat
    axes.tick_params(axis='x', which='minor', labelbottom=False)
    axes.set_title(panel, fontsize=9)
    axes.set_ylabel(rows[0].unit)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=7)


if __name__ == '__main__':
    sys.exit(main())
