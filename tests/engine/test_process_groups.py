"""What a rank reads from its launcher, the ports, and real launches on the CPU."""

import json
import os
import re
import shutil
import socket
import sys

import pytest
import torch.distributed as torch_dist
from mmengine.config import Config

from lt_mm.apis import train as api
from lt_mm.engine import process_groups
from lt_mm.engine.process_groups import LaunchError, check_port, prepare_process_group, read_ranks
from tests.launch_data import assert_trained_alike, finish, start, write_config
from tests.paths import CONFIGS, TOOLS

TORCHRUN = dict(RANK='3', WORLD_SIZE='4', LOCAL_RANK='1', MASTER_ADDR='node7', MASTER_PORT='29511')
SLURM = dict(
    SLURM_PROCID='1',
    SLURM_NTASKS='2',
    SLURM_LOCALID='1',
    SLURM_NODELIST='node7',
    SLURM_JOB_ID='1234',
    SLURM_STEP_ID='0',
)
MPI = dict(
    OMPI_COMM_WORLD_RANK='1',
    OMPI_COMM_WORLD_SIZE='2',
    OMPI_COMM_WORLD_LOCAL_RANK='1',
    OMPI_COMM_WORLD_LOCAL_SIZE='2',
)
ENVIRONMENTS = dict(pytorch=TORCHRUN, slurm=SLURM, mpi=MPI)
EPHEMERAL = range(32768, 61000)


def slurm_port(job, step=0, **more):
    ids = dict(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))
    return read_ranks('slurm', {**SLURM, **ids, **more}).master_port


def port_in_use():
    """A socket that listens, and its port."""
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    listener.listen()
    return listener, listener.getsockname()[1]


@pytest.fixture
def launched(monkeypatch):
    """Sets the environment of a launch on node7; the test leaves nothing of it."""

    def resolve(host, *_):
        if host not in ('node7', '127.0.0.1'):
            raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    for name in [*TORCHRUN, *SLURM, *MPI, 'TORCHELASTIC_USE_AGENT_STORE']:
        os.environ.pop(name, None)
    return os.environ.update


# ------------------------------------------------------------------- environment


def test_ranks_of_torchrun():
    assert read_ranks('pytorch', TORCHRUN) == (3, 4, 1, 'node7', 29511)


def test_ranks_of_slurm():
    assert read_ranks('slurm', SLURM)[:4] == (1, 2, 1, 'node7')


def test_ranks_of_mpi():
    assert read_ranks('mpi', MPI) == (1, 2, 1, '127.0.0.1', 29500)


@pytest.mark.parametrize(
    'launcher, name',
    [
        (launcher, name)
        for launcher, environ in ENVIRONMENTS.items()
        for name in environ
        if name not in ('OMPI_COMM_WORLD_LOCAL_SIZE',)
    ],
)
def test_missing_variable_is_named_with_the_command_that_sets_it(launcher, name):
    environ = {key: value for key, value in ENVIRONMENTS[launcher].items() if key != name}
    with pytest.raises(LaunchError, match=f'{name} is not set') as error:
        read_ranks(launcher, environ)
    command = dict(pytorch='dist_train.sh', slurm='srun', mpi='mpirun')[launcher]
    assert command in str(error.value)


@pytest.mark.parametrize(
    'launcher, change, words',
    [
        ('slurm', dict(SLURM_NTASKS='two'), "SLURM_NTASKS is 'two'; expected a number"),
        ('mpi', dict(OMPI_COMM_WORLD_RANK=''), 'OMPI_COMM_WORLD_RANK is not set'),
        ('pytorch', dict(RANK='4'), 'RANK=4, WORLD_SIZE=4'),
        ('pytorch', dict(MASTER_PORT='http'), "MASTER_PORT is 'http'"),
        ('lsf', {}, "launcher is 'lsf'; expected one of none, pytorch, slurm, mpi"),
    ],
)
def test_wrong_values_are_named(launcher, change, words):
    with pytest.raises(LaunchError) as error:
        read_ranks(launcher, {**ENVIRONMENTS.get(launcher, {}), **change})
    assert words in str(error.value)


def test_batch_script_without_srun_does_not_wait_for_the_other_ranks():
    batch = dict(SLURM, SLURM_PROCID='0', SLURM_LOCALID='0', MASTER_PORT='29511')
    del batch['SLURM_STEP_ID']
    with pytest.raises(LaunchError, match='not by srun'):
        read_ranks('slurm', batch)
    # One task needs no srun, and no job where the port is given.
    assert read_ranks('slurm', {**batch, 'SLURM_NTASKS': '1'}).world_size == 1


# --------------------------------------------------------------------- rank 0's host


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Replaces the program of SLURM; returns the function that writes it."""
    monkeypatch.setenv('PATH', str(tmp_path))

    def write(script):
        path = tmp_path / 'scontrol'
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)

    return write


def test_node_list_of_the_step_is_expanded(scontrol):
    scontrol('[ "$*" = "show hostnames node[8-9]" ] && echo node8 && echo node9')
    environ = dict(SLURM, SLURM_NODELIST='node[7-9]', SLURM_STEP_NODELIST='node[8-9]')
    assert read_ranks('slurm', environ).master_addr == 'node8'
    assert read_ranks('slurm', {**environ, 'MASTER_ADDR': 'ib3'}).master_addr == 'ib3'


def test_without_scontrol_the_hint_is_given(scontrol):
    environ = dict(SLURM, SLURM_NODELIST='node[7-9]')
    with pytest.raises(LaunchError, match='not in the PATH; set MASTER_ADDR'):
        read_ranks('slurm', environ)
    scontrol('echo "Invalid node list" >&2; exit 1')
    with pytest.raises(LaunchError, match='Invalid node list; set MASTER_ADDR'):
        read_ranks('slurm', environ)


def test_mpi_on_several_nodes_needs_the_address_of_the_first():
    environ = dict(MPI, OMPI_COMM_WORLD_SIZE='4')
    with pytest.raises(LaunchError, match='mpirun -x MASTER_ADDR'):
        read_ranks('mpi', environ)
    assert read_ranks('mpi', {**environ, 'MASTER_ADDR': 'node1'}).master_addr == 'node1'


# ------------------------------------------------------------------------------ ports


def test_port_of_the_user_wins():
    reserved = dict(MASTER_PORT='29555', SLURM_STEP_RESV_PORTS='12000-12001')
    assert slurm_port(1234, **reserved) == 29555
    assert read_ranks('mpi', dict(MPI, MASTER_PORT='29555')).master_port == 29555


@pytest.mark.parametrize(
    'reserved, port', [('12000-12001', 12000), ('12003,12007', 12003), ('12005', 12005)]
)
def test_port_that_slurm_reserved(reserved, port):
    assert slurm_port(1234, SLURM_STEP_RESV_PORTS=reserved) == port


def test_derived_ports_differ_and_lie_outside_the_ephemeral_range():
    # Jobs that can be on a node together, and the steps of one job.
    ports = [slurm_port(job) for job in range(70_000, 75_000)]
    assert len(set(ports)) == len(ports)
    assert not set(ports) & set(EPHEMERAL) and min(ports) > 1024
    steps = [slurm_port(1234, step) for step in range(1000)]
    assert len(set(steps)) == len(steps) and not set(steps) & set(EPHEMERAL)
    near = {slurm_port(job, step) for job in range(200) for step in range(4)}
    assert len(near) == 800
    assert slurm_port(2**32 - 3, 2**32 - 6) not in EPHEMERAL  # salloc's own step


def test_ports_of_two_mpiruns_differ_and_are_alike_for_all_ranks():
    first, second = (
        read_ranks('mpi', dict(MPI, PMIX_NAMESPACE=name)).master_port
        for name in ('prterun-node1-311@1', 'prterun-node1-312@1')
    )
    rank0 = dict(
        MPI,
        PMIX_NAMESPACE='prterun-node1-311@1',
        OMPI_COMM_WORLD_RANK='0',
        OMPI_COMM_WORLD_LOCAL_RANK='0',
    )
    assert read_ranks('mpi', rank0).master_port == first != second
    assert not {first, second} & set(EPHEMERAL)


def test_taken_port_is_named_with_the_hint():
    listener, port = port_in_use()
    with listener:
        with pytest.raises(LaunchError, match=f'port {port} of .* is taken') as error:
            check_port(port, 'mpi')
        assert 'mpirun -x MASTER_PORT=' in str(error.value)
    check_port(port, 'mpi')


# ------------------------------------------------------------------------ preparation


def test_unknown_host_of_rank_0_is_named_at_once(launched):
    launched(dict(SLURM, SLURM_NODELIST='node8'))
    with pytest.raises(LaunchError, match='rank 0, node8, has no address') as error:
        prepare_process_group(Config(dict(launcher='slurm')))
    assert 'export MASTER_ADDR=' in str(error.value)


@pytest.fixture
def with_a_card(monkeypatch):
    monkeypatch.setattr(process_groups, 'get_device', lambda: 'cuda')


def test_with_a_card_the_group_is_left_to_mmengine(launched, with_a_card):
    launched(dict(SLURM, LOCAL_RANK='0', WORLD_SIZE='7'))
    cfg = Config(dict(launcher='slurm'))
    prepare_process_group(cfg)
    assert not torch_dist.is_initialized() and 'model_wrapper_cfg' not in cfg
    found = {name: os.environ[name] for name in TORCHRUN}
    assert found == dict(
        RANK='1',
        WORLD_SIZE='2',
        LOCAL_RANK='1',
        MASTER_ADDR='node7',
        MASTER_PORT=str(slurm_port(1234)),
    )


def test_port_of_mmengines_dist_cfg_is_kept(launched, with_a_card):
    launched(SLURM)
    prepare_process_group(
        Config(dict(launcher='slurm', env_cfg=dict(dist_cfg=dict(backend='nccl', port=29577))))
    )
    assert os.environ['MASTER_PORT'] == '29577'


def test_rank_0_checks_its_port_except_below_torchruns_agent(launched, with_a_card):
    listener, port = port_in_use()
    launched(dict(TORCHRUN, RANK='0', LOCAL_RANK='0', MASTER_PORT=str(port)))
    with listener:
        with pytest.raises(LaunchError, match=f'port {port}'):
            prepare_process_group(Config(dict(launcher='pytorch')))
        launched(dict(TORCHELASTIC_USE_AGENT_STORE='True'))
        prepare_process_group(Config(dict(launcher='pytorch')))


def test_no_launcher_sets_nothing(launched):
    prepare_process_group(Config(dict(launcher='none')))
    assert 'RANK' not in os.environ and not torch_dist.is_initialized()


def test_one_rank_starts_on_gloo(launched):
    launched(
        dict(
            MPI,
            OMPI_COMM_WORLD_RANK='0',
            OMPI_COMM_WORLD_LOCAL_RANK='0',
            OMPI_COMM_WORLD_SIZE='1',
            OMPI_COMM_WORLD_LOCAL_SIZE='1',
            PMIX_NAMESPACE=f'test-{os.getpid()}',
            CUDA_VISIBLE_DEVICES='',
        )
    )
    cfg = Config(
        dict(
            launcher='mpi',
            find_unused_parameters=True,
            env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=90)),
        )
    )
    if process_groups.get_device() != 'cpu':
        pytest.skip('MMEngine starts the group itself where there is a card')
    try:
        prepare_process_group(cfg)
        assert torch_dist.get_backend() == 'gloo' and torch_dist.get_world_size() == 1
        assert cfg.model_wrapper_cfg == dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=True,
        )
    finally:
        torch_dist.destroy_process_group()


# --------------------------------------------------------------------------- launches


@pytest.mark.slow
def test_two_processes_with_the_variables_of_mpi_train(tmp_path):
    config, work_dir = write_config(tmp_path), tmp_path / 'work'
    finish(
        [
            start(
                [
                    sys.executable,
                    TOOLS / 'train.py',
                    config,
                    '--launcher',
                    'mpi',
                    '--work-dir',
                    work_dir,
                ],
                OMPI_COMM_WORLD_SIZE='2',
                OMPI_COMM_WORLD_LOCAL_SIZE='2',
                OMPI_COMM_WORLD_RANK=rank,
                OMPI_COMM_WORLD_LOCAL_RANK=rank,
                PMIX_NAMESPACE=f'test-{os.getpid()}',
            )
            for rank in '01'
        ]
    )
    assert_trained_alike(work_dir)


needs_mpirun = pytest.mark.skipif(
    shutil.which('mpirun') is None, reason='mpirun is not installed (Debian: openmpi-bin)'
)


def start_mpirun(folder, command):
    """Starts two ranks of a command; Open MPI keeps its files in a new folder.

    Open MPI 4.1.4 makes one folder for all jobs of a user, and two jobs that start in the
    same millisecond both make it: "A call to mkdir was unable to create ...".
    """
    folder.mkdir()
    return start(
        ['mpirun', '--allow-run-as-root', '--oversubscribe', '-n', '2', *command],
        TMPDIR=str(folder),
    )


@needs_mpirun
def test_ranks_and_ports_of_two_real_mpiruns(tmp_path):
    """Each rank writes its environment to a file."""
    write = (
        'import json, os, sys, tempfile; '
        'json.dump(dict(os.environ), open(tempfile.mktemp(dir=sys.argv[1]), "w"))'
    )
    folders = [tmp_path / 'first', tmp_path / 'second']
    for folder in folders:
        folder.mkdir()
    finish(
        [
            start_mpirun(tmp_path / f'{folder.name}_mpi', [sys.executable, '-c', write, folder])
            for folder in folders
        ]
    )
    ports = set()
    for folder in folders:
        ranks = sorted(read_ranks('mpi', json.loads(path.read_text())) for path in folder.iterdir())
        port = ranks[0].master_port
        assert ranks == [(0, 2, 0, '127.0.0.1', port), (1, 2, 1, '127.0.0.1', port)]
        ports.add(port)
    assert len(ports) == 2 and not ports & {29500, *EPHEMERAL}


@pytest.mark.slow
@needs_mpirun
def test_mpirun_trains_and_evaluates(tmp_path):
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path / 'pictures'),
        pipeline=[dict(type=name) for name in ('LoadImageFromFile', 'PackInputs')],
    )
    config = write_config(
        tmp_path,
        test_cfg=dict(),
        test_evaluator=dict(_delete_=True, type='Accuracy', topk=1),
        test_dataloader=dict(
            _delete_=True,
            batch_size=4,
            num_workers=0,
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
    )
    work_dir = tmp_path / 'work'

    def mpirun(tool, *arguments):
        return finish(
            [
                start_mpirun(
                    tmp_path / f'{tool}_mpi',
                    [
                        sys.executable,
                        TOOLS / tool,
                        config,
                        *arguments,
                        '--launcher',
                        'mpi',
                        '--work-dir',
                        work_dir,
                    ],
                )
            ]
        )[0]

    mpirun('train.py')
    ranks = assert_trained_alike(work_dir)
    assert ranks[0]['port'] not in (29500, *EPHEMERAL)
    checkpoint = work_dir / 'epoch_1.pth'
    found = re.findall(r'accuracy/top1: ([\d.]+)', mpirun('test.py', checkpoint))
    alone = api.test(str(config), str(checkpoint), work_dir=str(tmp_path / 'alone'))
    assert [float(value) for value in found] == [pytest.approx(alone['accuracy/top1'], abs=1e-3)]


@pytest.mark.slow
def test_torchrun_on_two_nodes_trains(tmp_path):
    """Both nodes are this machine; each has an agent and one process."""
    config, work_dir = write_config(tmp_path), tmp_path / 'work'
    listener, port = port_in_use()
    listener.close()
    agents = [
        start(
            [
                'bash',
                TOOLS / 'dist_train.sh',
                config,
                '1',
                '--work-dir',
                work_dir,
                '--cfg-options',
                'optim_wrapper.optimizer.lr=0.02',
            ],
            NNODES='2',
            NODE_RANK=node,
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
        for node in '01'
    ]
    finish(agents)
    ranks = assert_trained_alike(work_dir, local_ranks=(0, 0))
    assert ranks[0]['port'] == port
    assert 'lr=0.02' in (work_dir / 'small.py').read_text()


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['none.py', '2'], 'the config none.py does not exist'),
        ([], 'usage: tools/dist_train.sh CONFIG NUM_PROCESSES'),
        ([str(CONFIGS / 'resnet18_cifar10_lt.py'), 'two'], "'two'"),
        ([str(CONFIGS / 'resnet18_cifar10_lt.py'), '2'], 'is taken by another process; choose one'),
    ],
)
def test_dist_train_refuses(arguments, words):
    listener, port = port_in_use()
    with listener:
        agent = start(
            ['bash', TOOLS / 'dist_train.sh', *arguments], NNODES='2', MASTER_PORT=str(port)
        )
        output = agent.communicate(timeout=60)[0]
    assert agent.returncode == 2 and words in output
