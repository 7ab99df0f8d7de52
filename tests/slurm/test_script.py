"""What ``tools/slurm_train.sh`` asks of SLURM, whose programs are replaced by recorders."""

import shutil
import subprocess

import pytest

from tests.launch_data import environment
from tests.paths import TOOLS

SCRIPT = str(TOOLS / 'slurm_train.sh')
RECORD = 'printf "%s\\n" "$@" >"$(dirname "$0")/{}"'


@pytest.fixture
def train(tmp_path):
    """Runs the script; returns its result and the arguments that SLURM's program got."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name, script in (
        ('sbatch', RECORD.format('got') + '; echo "7;cluster"'),
        ('srun', RECORD.format('got')),
        ('scontrol', 'exit 1'),
    ):
        (programs / name).write_text(f'#!/bin/sh\n{script}\n')
        (programs / name).chmod(0o755)
    (tmp_path / 'config.py').touch()

    def run(*arguments, **settings):
        variables = environment(**settings)
        variables['PATH'] = f'{programs}:{variables["PATH"]}'
        arguments = arguments or ('gpu', 'name', 'config.py', 'work')
        done = subprocess.run(
            ['bash', SCRIPT, *arguments],
            env=variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        got = programs / 'got'
        return done, got.read_text().splitlines() if got.exists() else []

    return run


@pytest.mark.parametrize(
    'settings, expected',
    [
        (dict(), ['--ntasks=8', '--ntasks-per-node=8', '--gres=gpu:8', '--cpus-per-task=5']),
        (
            dict(GPUS='16', CPUS_PER_TASK='4'),
            ['--ntasks=16', '--ntasks-per-node=8', '--gres=gpu:8', '--cpus-per-task=4'],
        ),
        (
            dict(GPUS='8', GPUS_PER_NODE='4'),
            ['--ntasks=8', '--ntasks-per-node=4', '--gres=gpu:4', '--cpus-per-task=5'],
        ),
        (
            dict(GPUS='2'),
            ['--ntasks=2', '--ntasks-per-node=2', '--gres=gpu:2', '--cpus-per-task=5'],
        ),
        (dict(GPUS='0', NTASKS='3'), ['--ntasks=3', '--cpus-per-task=5']),
        (dict(GPUS='0'), ['--ntasks=1', '--cpus-per-task=5']),
    ],
)
def test_resources_of_the_job_and_of_its_step(train, settings, expected):
    _, submitted = train(**settings)
    assert submitted[:2] == ['--parsable', '--partition=gpu']
    assert submitted[2 : 2 + len(expected)] == expected
    _, started = train(SLURM_JOB_ID='7', **settings)
    assert started[: len(expected)] == expected


def test_options_of_the_submission(train, tmp_path):
    done, submitted = train(GRACE='300', SBATCH_ARGS='--time=4:00:00 --requeue', WAIT='1')
    assert submitted[-7:] == [
        '--requeue',
        '--open-mode=append',
        '--output=work/slurm-%j.out',
        '--signal=USR1@300',
        '--wait',
        '--time=4:00:00',
        '--requeue',
    ]
    assert done.stdout.splitlines() == [
        '[slurm_train] submitted job 7',
        '[slurm_train] log: work/slurm-7.out',
    ]
    assert (tmp_path / 'work').is_dir()


def test_step_keeps_the_arguments_as_they_are(train):
    options = ['--cfg-options', 'a=[1, 2]', 'b=*']
    arguments = ('gpu', 'name', 'config.py', 'my work', *options)
    _, started = train(*arguments, SLURM_JOB_ID='7', SRUN_ARGS='--mem=4G --exclusive')
    tool = str(TOOLS / 'train.py')
    assert started[started.index('--mem=4G') :] == [
        '--mem=4G',
        '--exclusive',
        'python',
        '-u',
        tool,
        'config.py',
        '--work-dir',
        'my work',
        '--resume',
        '--launcher',
        'slurm',
        *options,
    ]


@pytest.mark.parametrize(
    'arguments, settings, words',
    [
        (('gpu', 'name', 'config.py'), {}, '3 arguments; usage: tools/slurm_train.sh'),
        (('gpu', 'name', 'none.py', 'work'), {}, 'the config none.py does not exist'),
        ((), dict(GPUS='two'), "GPUS is 'two'; expected a whole number"),
        ((), dict(GRACE='2m'), "GRACE is '2m'; expected a whole number"),
    ],
)
def test_refusals(train, arguments, settings, words):
    done, got = train(*arguments, **settings)
    assert done.returncode == 2 and words in done.stderr and not got


def test_without_slurm_the_other_script_is_named(train, tmp_path):
    tools = tmp_path / 'only'
    tools.mkdir()
    (tools / 'dirname').symlink_to(shutil.which('dirname'))
    done = subprocess.run(
        [shutil.which('bash'), SCRIPT, 'gpu', 'name', 'config.py', 'work'],
        cwd=tmp_path,
        env=dict(environment(), PATH=str(tools)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and 'tools/dist_train.sh' in done.stderr


def test_job_that_cannot_be_requeued_says_how_to_go_on(train, tmp_path):
    srun = tmp_path / 'bin' / 'srun'
    srun.write_text('#!/bin/sh\nexit 75\n')
    scontrol = tmp_path / 'bin' / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$1" = --oneliner ] && echo "JobId=7 JobState=RUNNING "\n')
    done, _ = train(SLURM_JOB_ID='7')
    assert done.returncode == 75 and 'the same command goes on from there' in done.stdout
