"""Runs that are killed by the clock, wherever they are, end as if nothing had happened."""

import random
import signal
import time
from collections import Counter

import pytest

from tests.engine.interrupted_runs import (
    assert_same_weights,
    output,
    run,
    trace,
    validation,
    write_config,
)
from tests.training_data import write_pictures

NUM_KILLS, NUM_EPOCHS = 100, 8
LAST = f'epoch_{NUM_EPOCHS}.pth'


def moment(work_dir, num_lines):
    """Where a process was killed, from what it left."""
    if list(work_dir.glob('*.partial')):
        return 'while a file was written'
    new = trace(work_dir, 'start', 'step', 'val')[num_lines:] if has_trace(work_dir) else []
    if not new:
        return 'before the training began'
    return {'start': 'before the first step', 'step': 'after a step', 'val': 'after a validation'}[
        new[-1].split()[0]
    ]


def has_trace(work_dir):
    return (work_dir / 'trace0.txt').is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_by_the_clock(tmp_path, capsys):
    """Until there were enough kills, a run is killed at random times until it ends."""
    pictures = write_pictures(tmp_path / 'pictures')
    config = write_config(
        pictures, tmp_path, **{**validation(pictures), 'train_cfg.max_epochs': NUM_EPOCHS}
    )
    reference = tmp_path / 'reference'
    # The first process waits for the server that the others are forked from.
    assert run(config, tmp_path / 'first', options={'train_cfg.max_epochs': 1}) == 0
    began = time.monotonic()
    assert run(config, reference) == 0, output(reference)
    seconds = time.monotonic() - began
    validated = trace(reference, 'val')
    steps = dict(line.split(maxsplit=2)[1:] for line in trace(reference, 'step'))
    assert len(validated) == NUM_EPOCHS
    rng, moments, num_runs = random.Random(0), Counter(), 0
    while moments.total() < NUM_KILLS:
        work_dir, num_runs, code = tmp_path / f'run{num_runs}', num_runs + 1, None
        while code != 0:
            num_lines = len(trace(work_dir, 'start', 'step', 'val')) if has_trace(work_dir) else 0
            work_dir.mkdir(exist_ok=True)
            code = run(config, work_dir, kill_after=rng.uniform(0, 0.6 * seconds))
            assert code in (0, -signal.SIGKILL), output(work_dir)
            moments.update([moment(work_dir, num_lines)] if code else [])
        assert_same_weights(work_dir / LAST, reference / LAST)
        # Validations may come twice, with the same result, but none is left out.
        assert list(dict.fromkeys(trace(work_dir, 'val'))) == validated
        found = [line.split(maxsplit=2)[1:] for line in trace(work_dir, 'step')]
        assert all(steps[step] == ids for step, ids in found) and len(dict(found)) == len(steps)
        starts = [int(line.split()[1]) for line in trace(work_dir, 'start')]
        assert starts == sorted(starts)
        assert [path.name for path in work_dir.glob('*.pth*')] == [LAST]
        assert not list(work_dir.glob('*.partial'))
    with capsys.disabled():
        print(f'\n{moments.total()} kills in {num_runs} runs:', dict(moments))
