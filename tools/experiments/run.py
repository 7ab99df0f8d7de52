"""Runs a study: ``python tools/experiments/run.py tools/experiments/studies/cifar10.py``.

A study names runs, each a config and settings that differ from it, and the seeds. Every
run is a training of its own process, as with ``tools/train.py --resume``. Results are
appended to CSV files, one row a run and seed; runs that have a row are not run again,
and a run that was interrupted goes on from its last checkpoint.
"""

import argparse
import csv
import fnmatch
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

COLUMNS = ('run', 'seed', 'images', 'metric', 'loss', 'loss_lt', 'paired_share', 'seconds')
MEASURED = ('mean_kl', 'agreement', 'matched_share', 'mean_iou')
CURVE_COLUMNS = ('run', 'seed', 'images', 'metric', 'loss', 'loss_lt')
_WRITING = Lock()
_INITIAL = Lock()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', type=Path, help='Python file with the runs')
    parser.add_argument('--only', nargs='+', default=['*'], help='patterns of run names')
    parser.add_argument('--seeds', nargs='+', type=int, help="instead of the study's")
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time')
    parser.add_argument(
        '--results',
        type=Path,
        help='folder of the CSV files (default: docs/studies/<name of the study>)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='folder of logs and checkpoints (default: work_dirs/studies/<name of the study>)',
    )
    parser.add_argument(
        '--one',
        nargs=2,
        metavar=('RUN', 'SEED'),
        help='trains one run in this process and records nothing',
    )
    args = parser.parse_args()
    args.results = args.results or Path('docs/studies') / args.study.stem
    args.work_dir = args.work_dir or Path('work_dirs/studies') / args.study.stem
    return args


def main() -> None:
    args = parse_args()
    study = runpy.run_path(str(args.study))
    if args.one:
        name, seed = args.one
        train(study, name, int(seed), args.work_dir)
        return
    pending = pending_runs(study, args)
    print(f'{len(pending)} runs to do', flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = [
            run
            for run, done in zip(pending, pool.map(lambda run: do_run(study, args, *run), pending))
            if not done
        ]
    if failed:
        sys.exit(f'failed: {failed}')


def pending_runs(study: dict[str, Any], args: argparse.Namespace) -> list[tuple[str, int]]:
    """Runs without a row, in the order of the study."""
    done = set.intersection(*(recorded(args.results / name) for name in tables(study)))
    names = [
        name
        for name in study['runs']
        if any(fnmatch.fnmatch(name, pattern) for pattern in args.only)
    ]
    return [
        (name, seed)
        for name in names
        for seed in args.seeds or study['seeds']
        if (name, seed) not in done
    ]


def tables(study: dict[str, Any]) -> list[str]:
    """The files that hold a row for each run."""
    return ['runs.csv'] + ['consistency.csv'] * ('consistency' in study)


def recorded(path: Path) -> set[tuple[str, int]]:
    return {(row['run'], int(row['seed'])) for row in read_rows(path)}


def folder_of(work_dir: Path, name: str, seed: int) -> Path:
    return work_dir / name / f'seed{seed}'


def do_run(study: dict[str, Any], args: argparse.Namespace, name: str, seed: int) -> bool:
    """Trains a run and records its result; whether it succeeded."""
    began = time.monotonic()
    if not (make_initial(study, args, name, seed) and in_process(args, name, seed)):
        return False
    folder = folder_of(args.work_dir, name, seed)
    curve = read_curve(folder, study['metric'], study.get('scale', 1))
    seconds = time.monotonic() - began
    row = dict(curve[-1], run=name, seed=seed, seconds=round(seconds))
    with _WRITING:
        if (name, seed) not in recorded(args.results / 'runs.csv'):
            append_rows(
                args.results / 'curves.csv',
                CURVE_COLUMNS,
                [dict(point, run=name, seed=seed) for point in curve],
            )
            append_rows(args.results / 'runs.csv', COLUMNS, [row])
        if 'consistency' in study:
            append_rows(
                args.results / 'consistency.csv',
                ('run', 'seed', *MEASURED),
                [dict(summary_of(folder), run=name, seed=seed)],
            )
    print(f'{name}, seed {seed}: {row["metric"]} in {seconds:.0f} s', flush=True)
    return True


def make_initial(study: dict[str, Any], args: argparse.Namespace, name: str, seed: int) -> bool:
    """Trains the run that this one goes on from, if its checkpoint is not there."""
    initial = study['runs'][name][2:]
    if not initial:
        return True
    with _INITIAL:  # two runs that want the same one must not train it twice
        return bool(last_checkpoint(args.work_dir, *initial, seed)) or (
            in_process(args, *initial, seed)
        )


def last_checkpoint(work_dir: Path, name: str, seed: int) -> str | None:
    """The checkpoint at the end of a run; None unless it came to its end."""
    folder = folder_of(work_dir, name, seed)
    if not (folder / 'summary.json').exists():
        return None
    return (folder / 'last_checkpoint').read_text()


def in_process(args: argparse.Namespace, name: str, seed: int) -> bool:
    """Trains in a process of its own; whether it succeeded."""
    folder = folder_of(args.work_dir, name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'output.log', 'a') as log:
        code = subprocess.run(
            [
                sys.executable,
                __file__,
                str(args.study),
                '--work-dir',
                str(args.work_dir),
                '--one',
                name,
                str(seed),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={'OMP_NUM_THREADS': '1', **os.environ},
        ).returncode
    if code:
        print(f'{name}, seed {seed}: failed with {code}, see {folder}/output.log', flush=True)
    return not code


def train(study: dict[str, Any], name: str, seed: int, work_dir: Path) -> None:
    from lt_mm.apis import train as api
    from lt_mm.apis.consistency import measure_consistency

    config, settings, *initial = study['runs'][name]
    settings = {**settings, 'randomness.seed': seed}
    if initial:
        settings['load_from'] = last_checkpoint(work_dir, *initial, seed)
    folder = folder_of(work_dir, name, seed)
    runner = api.train(config, work_dir=str(folder), resume='auto', cfg_options=settings)
    summary = dict(images_per_step=runner.train_loop.dataloader.batch_sampler.batch_size)
    if 'consistency' in study:
        report = measure_consistency(
            config,
            (folder / 'last_checkpoint').read_text(),
            cfg_options=settings,
            with_stock=False,
            work_dir=str(folder / 'consistency'),
            **study['consistency'],
        )
        summary.update(
            (key, round(report[key], 5)) for key in MEASURED if report.get(key) is not None
        )
    (folder / 'summary.json').write_text(json.dumps(summary))


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'summary.json').read_text())


def read_curve(folder: Path, metric: str, scale: float) -> list[dict[str, Any]]:
    """A point for each validation: images seen, metric, and mean losses since the last.

    The logs of a run that was interrupted are read in the order of their start; what was
    done again counts as it was done last.

    Raises:
        ValueError: If the metric is not in the logs.
    """
    steps, validated, names = {}, {}, set()
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for entry in map(json.loads, path.read_text().splitlines()):
            names.update(entry)
            if metric in entry:
                validated[entry['step']] = entry[metric]
            elif 'iter' in entry:
                steps[entry['iter']] = entry
    if not validated:
        raise ValueError(
            f'no {metric!r} in {folder}/*/vis_data/scalars.json, which has '
            f"{sorted(names)}; expected the study's `metric` to be what its "
            'configs validate with'
        )
    images = summary_of(folder)['images_per_step']
    points, last = [], 0
    for epoch in sorted(validated):
        since = [step for step in steps.values() if last < step['epoch'] <= epoch]
        points.append(
            dict(
                images=max(step['iter'] for step in since) * images,
                metric=round(validated[epoch] * scale, 4),
                loss=_mean(step['loss'] for step in since),
                loss_lt=_mean(
                    sum(value for key, value in step.items() if 'loss_lt_' in key) for step in since
                ),
                paired_share=_mean(step.get('lt_paired_share', 0.0) for step in since),
            )
        )
        last = epoch
    return points


def _mean(values: Iterable[float]) -> float:
    return round(statistics.fmean(values), 4)


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', newline='') as file:
        writer = csv.DictWriter(file, columns, extrasaction='ignore', lineterminator='\n')
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
