"""Runs a study: ``python tools/experiments/run.py tools/experiments/studies/cifar10.py``.

A study names runs, each a config and settings that differ from it, and the seeds. Every
run is a training of its own process, as with ``tools/train.py --resume``. Results are
appended to CSV files, one row a run and seed; runs that have a row are not run again,
and a run that was interrupted goes on from its last checkpoint.
"""

import argparse
import fnmatch
import io
import itertools
import json
import os
import runpy
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd

MEASURED = (
    'mean_kl',
    'agreement',
    'matched_share',
    'mean_iou',
    'score_jitter',
    'calibrated_kl',
    'temperature',
)
STEADINESS = {
    'flicker/label_changes': 'label_changes',
    'flicker/kl': 'frame_kl',
    'flicker/blinking': 'blinking',
    'flicker/center_jitter': 'center_jitter',
    'flicker/size_jitter': 'size_jitter',
    'flicker/score_swing': 'score_swing',
    'flicker/objects_per_frame': 'objects_per_frame',
    'calibration/ece': 'ece',
    'calibration/overconfidence': 'overconfidence',
}
COLUMNS = {
    'runs.csv': ('images', 'metric', 'loss', 'loss_lt', 'paired_share', 'seconds'),
    'curves.csv': ('images', 'metric', 'loss', 'loss_lt'),
    'consistency.csv': MEASURED,
    'test.csv': ('metric',),
    'steadiness.csv': tuple(STEADINESS.values()),
}
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
    parser.add_argument(
        '--test',
        action='store_true',
        help='trains nothing, and evaluates the finished runs on the test data of their configs',
    )
    parser.add_argument(
        '--measure',
        action='store_true',
        help='trains nothing, and measures flicker, calibration, corruptions and shifts of the '
        'finished runs, as `steadiness`, `corruptions` and `shifts` of the study say',
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
    if args.test:
        test_runs(study, args)
        return
    if args.measure:
        measure_runs(study, args)
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
    return [run for run in chosen_runs(study, args) if run not in done]


def chosen_runs(study: dict[str, Any], args: argparse.Namespace) -> list[tuple[str, int]]:
    """Runs that the arguments ask for, in the order of the study."""
    names = [
        name
        for name in study['runs']
        if any(fnmatch.fnmatch(name, pattern) for pattern in args.only)
    ]
    return [(name, seed) for name in names for seed in args.seeds or study['seeds']]


def test_runs(study: dict[str, Any], args: argparse.Namespace) -> None:
    """Records the metric on the test data, for runs that were trained to their end.

    Choices are made on validation data, so this comes once, after the last choice.
    """
    from lt_mm.apis import train as api

    path = args.results / 'test.csv'
    for name, seed in chosen_runs(study, args):
        checkpoint = last_checkpoint(args.work_dir, name, seed)
        if not checkpoint or (name, seed) in recorded(path):
            continue
        config, settings, _ = definition_of(study, name)
        work_dir = str(folder_of(args.work_dir, name, seed) / 'test')
        found = api.test(config, checkpoint, work_dir, cfg_options=settings)
        metric = round(found[study['metric']] * study.get('scale', 1), 4)
        append(path, name, seed, pd.DataFrame([dict(metric=metric)]))
        print(f'{name}, seed {seed}: {metric} on the test data', flush=True)


def measure_runs(study: dict[str, Any], args: argparse.Namespace) -> None:
    """Records how steady the runs are that were trained to their end, on validation data."""
    from lt_mm.apis.steadiness.robustness import measure_robustness
    from lt_mm.apis.steadiness.stability import measure_stability

    def steadiness(config: str, checkpoint: str, **options: Any) -> dict[str, float]:
        numbers = measure_stability(config, checkpoint, **study['steadiness'], **options).numbers
        return {column: numbers[key] for key, column in STEADINESS.items() if key in numbers}

    def corruptions(config: str, checkpoint: str, **options: Any) -> dict[str, float]:
        report = measure_robustness(config, checkpoint, **study['corruptions'], **options)
        return {key: value for key, value in report.numbers().items() if key != 'metric'}

    def shifts(config: str, checkpoint: str, **options: Any) -> dict[str, float | None]:
        measure = runpy.run_path(str(Path(__file__).with_name('shifts.py')))['measure_shifts']
        return measure(config, checkpoint, **study['shifts'], **options)

    for measure in (steadiness, corruptions, shifts):
        path = args.results / f'{measure.__name__}.csv'
        for name, seed in chosen_runs(study, args):
            checkpoint = last_checkpoint(args.work_dir, name, seed)
            if measure.__name__ not in study or not checkpoint or (name, seed) in recorded(path):
                continue
            config, settings, _ = definition_of(study, name)
            work_dir = str(folder_of(args.work_dir, name, seed) / measure.__name__)
            found = measure(config, checkpoint, cfg_options=settings, work_dir=work_dir)
            append(path, name, seed, pd.DataFrame([found]).round(5))
            print(f'{name}, seed {seed}: {measure.__name__} measured', flush=True)


def tables(study: dict[str, Any]) -> list[str]:
    """The files that hold a row for each run."""
    return ['runs.csv'] + ['consistency.csv'] * ('consistency' in study)


def recorded(path: Path) -> set[tuple[str, int]]:
    """Which runs have a row, with which seeds."""
    if not whole_lines(path):
        return set()
    whole = io.StringIO(''.join(whole_lines(path)))
    return set(pd.read_csv(whole)[['run', 'seed']].itertuples(index=False, name=None))


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
    with _WRITING:
        if (name, seed) not in recorded(args.results / 'runs.csv'):
            append(args.results / 'curves.csv', name, seed, curve)
            last = curve.tail(1).assign(seconds=round(seconds))
            append(args.results / 'runs.csv', name, seed, last)
        if 'consistency' in study:
            measured = pd.DataFrame([summary_of(folder)])
            append(args.results / 'consistency.csv', name, seed, measured)
    print(f'{name}, seed {seed}: {curve.metric.iloc[-1]} in {seconds:.0f} s', flush=True)
    return True


def definition_of(study: dict[str, Any], name: str) -> tuple[str, dict[str, Any], str | None]:
    """Config and settings of a run, and the run that it goes on from."""
    config, settings, initial = (*study['runs'][name], None)[:3]
    return config, settings, initial


def make_initial(study: dict[str, Any], args: argparse.Namespace, name: str, seed: int) -> bool:
    """Trains the run that this one goes on from, if its checkpoint is not there."""
    *_, initial = definition_of(study, name)
    if not initial:
        return True
    with _INITIAL:  # two runs that want the same one must not train it twice
        return bool(last_checkpoint(args.work_dir, initial, seed)) or (
            in_process(args, initial, seed)
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

    config, settings, initial = definition_of(study, name)
    settings = {**settings, 'randomness.seed': seed}
    if study.get('bfloat16'):
        # Registers its optimizer wrapper.
        runpy.run_path(str(Path(__file__).with_name('bfloat16.py')))
        settings['optim_wrapper.type'] = 'BFloat16OptimWrapper'
    if initial:
        settings['load_from'] = last_checkpoint(work_dir, initial, seed)
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
    write(folder / 'summary.json', json.dumps(summary))


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'summary.json').read_text())


def read_curve(folder: Path, metric: str, scale: float) -> pd.DataFrame:
    """A row for each validation: images seen, metric, and mean losses since the last.

    The logs of a run that was interrupted are read in the order of their start; what was
    done again counts as it was done last.

    Raises:
        ValueError: If the metric is not in the logs.
    """
    from lt_mm.visualization.training_log import read_log

    entries = pd.DataFrame(itertools.chain.from_iterable(read_log(folder)))
    if metric not in entries:
        raise ValueError(
            f'no {metric!r} in {folder}/*/vis_data/scalars.json, which has '
            f"{sorted(entries)}; expected the study's `metric` to be what its "
            'configs validate with'
        )
    validated = entries.dropna(subset=metric).groupby('step')[metric].last() * scale
    steps = entries[entries[metric].isna()].dropna(subset='iter')
    steps = steps.drop_duplicates('iter', keep='last')
    steps = steps.assign(
        images=steps['iter'].astype(int) * summary_of(folder)['images_per_step'],
        loss_lt=steps.filter(regex=r'loss_(rpn_)?lt_').sum(axis=1),
        paired_share=steps.filter(items=['lt_paired_share']).sum(axis=1),
    )
    # Which validation comes next after each step; none after the last steps of some runs.
    following = np.searchsorted(validated.index, steps['epoch'])
    means = dict.fromkeys(('loss', 'loss_lt', 'paired_share'), 'mean')
    points = steps.groupby(following).agg({'images': 'max', **means}).loc[: len(validated) - 1]
    return points.assign(metric=validated.to_numpy()).round(4)


def append(path: Path, name: str, seed: int, rows: pd.DataFrame) -> None:
    """Adds rows of a run to a CSV file, with the columns of that file, in one step.

    Rows that the file has of this run and seed, of a process that was killed before it had
    recorded everything, are replaced.

    Raises:
        ValueError: If the file has other columns, such as those of other corruptions.
    """
    columns = COLUMNS.get(path.name, rows.columns)
    rows = rows.assign(run=name, seed=seed).reindex(columns=['run', 'seed', *columns])
    expected, *new = rows.to_csv(index=False).splitlines(keepends=True)
    header, *before = whole_lines(path) or [expected]
    if header != expected:
        raise ValueError(
            f'{path} has the columns {header.strip()}, but {name}, seed {seed}, was measured with '
            f'{expected.strip()}; expected the same. Move the file away and measure all runs again'
        )
    others = [line for line in before if not line.startswith(f'{name},{seed},')]
    write(path, ''.join([header, *others, *new]))


def whole_lines(path: Path) -> list[str]:
    """The lines of a CSV file; an earlier version may have been killed within the last one."""
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith('\n')]


def write(path: Path, text: str) -> None:
    """Writes a file in one step: it is whole, or as it was before."""
    from lt_mm.engine.checkpoints import AtomicBackend

    AtomicBackend().put_text(text, path)


if __name__ == '__main__':
    main()
