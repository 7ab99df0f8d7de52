"""``tools/slurm_train.sh`` on a real SLURM: two nodes on loopback, started for this.

All of them in one module, with one cluster. Its ports and folders are its own, so that
another copy of these tests may run beside it.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mmengine.config import Config

from lt_mm.engine.process_groups import read_ranks
from tests.launch_data import STEPS_AN_EPOCH, assert_trained_alike, environment, write_config
from tests.paths import TOOLS
from tests.slurm.cluster import running_cluster, why_unavailable

SCRIPT = TOOLS / 'slurm_train.sh'
RESULT_SECONDS = 150
_reason = why_unavailable()
pytestmark = pytest.mark.skipif(_reason is not None, reason=f'no SLURM here: {_reason}')


@pytest.fixture(scope='module')
def cluster():
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def submit(cluster):
    """Submits jobs; with WAIT=1 the script may outlive the cluster, so it is ended."""
    jobs = []

    def make(*arguments, **settings):
        jobs.append(Job(cluster, *arguments, **settings))
        return jobs[-1]

    yield make
    for job in jobs:
        job.end_script()


class Job:
    """What ``tools/slurm_train.sh`` submitted: two tasks of one core, without a GPU."""

    def __init__(self, cluster, config, work_dir, *arguments, path='', **settings):
        self.cluster, self.work_dir = cluster, Path(work_dir)
        variables = environment(
            SLURM_CONF=cluster.environment['SLURM_CONF'],
            **{
                **dict(GPUS='0', NTASKS='2', CPUS_PER_TASK='1', MASTER_ADDR='127.0.0.1'),
                **settings,
            },
        )
        variables['PATH'] = f'{path}:{variables["PATH"]}'
        self.script = subprocess.Popen(
            ['bash', str(SCRIPT), 'normal', 'small', str(config), str(work_dir), *arguments],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said = [self.script.stdout.readline() for _ in range(2)]
        found = re.fullmatch(r'\[slurm_train\] submitted job (\d+)\n', said[0])
        assert found, said
        self.id = found.group(1)
        assert said[1] == f'[slurm_train] log: {work_dir}/slurm-{self.id}.out\n'
        self.log = self.work_dir / f'slurm-{self.id}.out'

    def exit_code(self):
        """The exit code of the script, when it has ended."""
        return self.script.wait(timeout=RESULT_SECONDS)

    def end_script(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.script.pid, signal.SIGKILL)
        self.script.wait()
        self.script.stdout.close()

    def state(self):
        return self.cluster.state(self.id)

    def wait_until(self, reached):
        """Waits until ``reached()``; fails with the logs when that takes too long."""
        deadline = time.monotonic() + RESULT_SECONDS
        while not reached():
            if time.monotonic() > deadline or self.state() in ('FAILED', 'NODE_FAIL'):
                pytest.fail('\n'.join([f'job is {self.state()}', self.text(), self.cluster.logs()]))
            time.sleep(0.1)

    def text(self):
        return self.log.read_text() if self.log.exists() else 'no log'

    def steps(self, rank=0):
        """What a rank wrote after each step: (how often requeued, iteration)."""
        path = self.work_dir / f'steps{rank}.txt'
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def wait_for_step(self, start, count=1):
        self.wait_until(lambda: sum(found == start for found, _ in self.steps()) >= count)


def preempt(cluster):
    """Submits a job that needs both nodes and goes first."""
    cluster.run(
        'sbatch',
        '--partition=urgent',
        '--exclusive',
        '--nodes=2',
        '--output=/dev/null',
        '--wrap=true',
    )


# -------------------------------------------------------------------------- trainings


@pytest.mark.slow
def test_two_jobs_at_once_on_one_node_both_train(submit, tmp_path):
    config = write_config(tmp_path)
    jobs = [
        submit(
            config,
            tmp_path / name,
            '--cfg-options',
            'optim_wrapper.optimizer.lr=0.02',
            'notes.scales=[(64, 48), (32, 24)]',
            'notes.text=$HOME"*"',
            SBATCH_ARGS='--nodelist=node1',
        )
        for name in ('first one', 'second')
    ]
    jobs[0].wait_until(lambda: jobs[0].state() == jobs[1].state() == 'RUNNING')
    ports = set()
    for job in jobs:
        job.wait_until(lambda job=job: job.state() == 'COMPLETED')
        assert job.exit_code() == 0
        ports.add(assert_trained_alike(job.work_dir)[0]['port'])
        assert job.steps(0) == job.steps(1) == [(0, 1), (0, 2), (0, 3)]
        assert re.search(r'Epoch\(train\) +\[1\]\[3/3\]', job.text())
        cfg = Config.fromfile(str(job.work_dir / 'small.py'))
        assert cfg.optim_wrapper.optimizer.lr == 0.02
        assert cfg.notes == dict(scales=[(64, 48), (32, 24)], text='$HOME"*')
    assert len(ports) == 2


@pytest.mark.parametrize(
    'signals',
    [('SIGTERM',), pytest.param(('SIGUSR1', 'SIGTERM'), marks=pytest.mark.slow)],
    ids=' '.join,
)
def test_interrupted_job_is_requeued_and_goes_on_where_it_stopped(
    cluster, submit, tmp_path, signals
):
    """On two nodes: warned as before the time limit, then preempted, then left alone."""
    epochs, warned = 6, 'SIGUSR1' in signals
    config = write_config(
        tmp_path,
        **{
            'train_cfg.max_epochs': epochs,
            'train_dataloader.num_workers': 1,
            'custom_hooks': [dict(type='WriteRankRecords', pause=0.25)],
        },
    )
    job = submit(config, tmp_path / 'work', SBATCH_ARGS='--nodes=2 --ntasks-per-node=1')
    job.wait_for_step(start=0, count=4)
    if warned:
        cluster.run('scancel', '--signal=USR1', job.id)
        job.wait_for_step(start=1)
    preempt(cluster)
    job.wait_until(lambda: job.state() == 'COMPLETED')
    assert_trained_alike(job.work_dir, epochs, local_ranks=(0, 0))
    every_step = list(range(1, epochs * STEPS_AN_EPOCH + 1))
    num_starts = 1 + len(signals)
    for rank in (0, 1):
        steps = job.steps(rank)
        assert [step for _, step in steps] == every_step
        assert {start for start, _ in steps} == set(range(num_starts))
    scalars = sorted(job.work_dir.glob('*/vis_data/scalars.json'))
    assert len(scalars) == num_starts
    assert every_step == [
        json.loads(line)['step'] for path in scalars for line in path.read_text().splitlines()
    ]
    text = job.text()
    for name in ('SIGUSR1', 'SIGTERM'):
        assert text.count(f'{name}: stopped after') == signals.count(name)
    assert text.count(f'exit code 75; requeued job {job.id}') == len(signals)


# ------------------------------------------------- the script, with a program that waits


@pytest.fixture
def stub(tmp_path):
    """Writes a shell script that runs in the place of python; returns (folder, config)."""
    config = tmp_path / 'config.py'
    config.touch()

    def write(script):
        path = tmp_path / 'bin' / 'python'
        path.parent.mkdir()
        path.write_text(f'#!/bin/bash\n{script}\n')
        path.chmod(0o755)
        return str(path.parent), config

    return write


# Exits with 75 at a signal, rank 0 later than the others; after a requeue at once.
WAITS_FOR_A_SIGNAL = """
trap '[ "$SLURM_PROCID" != 0 ] || { sleep 2; echo saved; }; exit 75' USR1 TERM
echo "$SLURM_RESTART_COUNT:$*"
for i in {1..600}; do [ -n "$SLURM_RESTART_COUNT" ] || sleep 0.1; done
"""


@pytest.mark.parametrize(
    'warned_by', ['scancel', pytest.param('time limit', marks=pytest.mark.slow)]
)  # SLURM checks it every 30 s
def test_warned_job_is_requeued_when_all_ranks_have_ended(
    cluster, submit, stub, tmp_path, warned_by
):
    path, config = stub(WAITS_FOR_A_SIGNAL)
    options = dict(SBATCH_ARGS='--time=1 --comment=none', GRACE='59')
    job = submit(
        config,
        tmp_path / 'work',
        '--resume',
        'start.pth',
        '--amp',
        path=path,
        **(options if warned_by == 'time limit' else {}),
    )
    if warned_by == 'scancel':
        job.wait_until(lambda: job.text().count('train.py') == 2)
        cluster.run('scancel', '--signal=USR1', job.id)
    job.wait_until(lambda: job.state() == 'COMPLETED')
    tool = f'-u {TOOLS}/train.py {config} --work-dir {job.work_dir}'
    arguments = f'{tool} --resume --launcher slurm --resume start.pth --amp'
    assert job.text().count(f':{arguments}\n') == 2
    assert job.text().count(f'1:{arguments} --resume\n') == 2  # its own checkpoint
    assert job.text().count('saved') == job.text().count('75; requeued job') == 1


def test_cancelled_job_does_not_come_back(cluster, submit, stub, tmp_path):
    path, config = stub(WAITS_FOR_A_SIGNAL)
    job = submit(config, tmp_path / 'work', path=path)
    job.wait_until(lambda: job.text().count('train.py') == 2)
    cluster.run('scancel', job.id)
    job.wait_until(lambda: job.state() == 'CANCELLED')
    assert 'SLURM ends this job already (COMPLETING)' in job.text()
    assert 'start 2' not in job.text()


def test_failure_is_passed_on_and_not_repeated(submit, stub, tmp_path):
    path, config = stub('exit $((SLURM_PROCID * 3))')
    job = submit(config, tmp_path / 'work', path=path, WAIT='1')
    assert job.exit_code() == 3 and job.state() == 'FAILED'
    assert 'requeue' not in job.text()


def test_ranks_and_ports_of_real_steps(cluster, monkeypatch):
    monkeypatch.setenv('SLURM_CONF', cluster.environment['SLURM_CONF'])

    def ranks(*options):
        text = cluster.run(
            'srun', '--ntasks=2', *options, 'bash', '-c', 'echo $(env | grep ^SLURM)'
        )
        return sorted(
            read_ranks('slurm', dict(pair.split('=', 1) for pair in line.split()))
            for line in text.splitlines()
        )

    one_node, two_nodes = ranks('--nodelist=node2'), ranks('--nodes=2')
    assert [rank[:4] for rank in one_node] == [(0, 2, 0, 'node2'), (1, 2, 1, 'node2')]
    assert [rank[:4] for rank in two_nodes] == [(0, 2, 0, 'node1'), (1, 2, 0, 'node1')]
    ports = [{rank.master_port for rank in step} for step in (one_node, two_nodes)]
    assert [len(step) for step in ports] == [1, 1] and ports[0] != ports[1]
