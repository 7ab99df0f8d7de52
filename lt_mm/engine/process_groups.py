"""Preparing the ranks of a launch for the Runner: environment, port, and gloo on CPUs.

MMEngine starts the process group itself, but it assumes a CUDA device and port 29500, on
which the second job of a node fails. Here each job gets a port of its own, an incomplete
environment is refused with the name of what is missing, and ranks without a GPU start the
group on gloo, which MMEngine then uses.
"""

import datetime
import errno
import os
import re
import socket
import subprocess
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.distributed as torch_dist
from mmengine._strategy import DDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import STRATEGIES

from lt_mm.registry import builds

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
_COMMANDS = {
    'pytorch': 'bash tools/dist_train.sh CONFIG NUM_PROCESSES',
    'slurm': 'bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR, or inside '
    'a job: srun --ntasks=N python tools/train.py CONFIG --launcher slurm',
    'mpi': 'mpirun -n N python tools/train.py CONFIG --launcher mpi',
}
# How MASTER_ADDR and MASTER_PORT are set for every rank.
_SETTINGS = {
    'pytorch': '{} bash tools/dist_train.sh ...',
    'slurm': 'export {}',
    'mpi': 'mpirun -x {} ...',
}

# Below Linux's ephemeral ports (32768 to 60999), which any connection may occupy. Their
# number is prime, so that the ports of the steps of one job all differ.
_FIRST_PORT, _NUM_PORTS = 10007, 22751
_PORTS_A_STEP = 5003
_DEFAULT_PORT = 29500  # torch's and MMEngine's


class LaunchError(RuntimeError):
    """A launch cannot start; says what is missing or taken, and what to do."""


class Ranks(NamedTuple):
    """What a process has to know about the launch that it is a part of.

    Attributes:
        rank: Number of the process, from 0.
        world_size: Number of processes.
        local_rank: Number of the process on its node, from 0.
        master_addr: Host of rank 0.
        master_port: TCP port on which rank 0 waits for the others.
    """

    rank: int
    world_size: int
    local_rank: int
    master_addr: str
    master_port: int


def prepare_process_group(cfg: Config) -> None:
    """Prepares the launch of ``cfg.launcher`` for the Runner.

    Sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without a GPU it also
    starts the process group on gloo, and sets ``cfg.model_wrapper_cfg`` accordingly.

    Raises:
        LaunchError: If the environment is incomplete, the host of rank 0 is unknown, or
            the port is taken.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    if not torch_dist.is_initialized():
        # MMEngine's option for SLURM, which overrides MASTER_PORT.
        if launcher == 'slurm' and dist_cfg.get('port') is not None:
            os.environ['MASTER_PORT'] = str(dist_cfg.port)
        ranks = read_ranks(launcher, os.environ)
        # The variables of torch's env://.
        os.environ.update({name.upper(): str(value) for name, value in ranks._asdict().items()})
        # The agent of torchrun listens on the port already; its ranks connect to it.
        if os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True':
            check_address(ranks.master_addr, launcher)
            if ranks.rank == 0:
                check_port(ranks.master_port, launcher)
    if get_device() == 'cpu':
        _start_gloo(cfg, dist_cfg.get('timeout'))


def read_ranks(launcher: str, environ: Mapping[str, str]) -> Ranks:
    """Reads what a launcher tells this process in its environment.

    Args:
        launcher: ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        environ: Environment variables of the process.

    Raises:
        LaunchError: If a variable is missing or not a number; names it and the command
            that sets it.
    """
    if launcher not in _VARIABLES:
        raise LaunchError(f'launcher is {launcher!r}; expected one of {", ".join(LAUNCHERS)}')
    names = _VARIABLES[launcher]
    rank, world_size, local_rank = (_number(name, launcher, environ) for name in names)
    if not 0 <= local_rank <= rank < world_size:
        raise LaunchError(
            f'{names[0]}={rank}, {names[1]}={world_size}, {names[2]}={local_rank}; '
            'expected local rank <= rank < number of processes, counted from 0. The launcher '
            f'sets them: {_COMMANDS[launcher]}'
        )
    if (
        launcher == 'slurm'
        and world_size > 1
        and 'SLURM_JOB_ID' in environ
        and 'SLURM_STEP_ID' not in environ
    ):
        # The batch script itself has SLURM_PROCID=0 and would wait for the other ranks.
        raise LaunchError(
            f'SLURM_STEP_ID is not set, and SLURM_NTASKS is {world_size}: this process '
            'was started by the batch script, not by srun. Put srun in front of it, or '
            'use tools/slurm_train.sh'
        )
    return Ranks(
        rank,
        world_size,
        local_rank,
        _master_addr(launcher, environ),
        _master_port(launcher, environ),
    )


def check_address(host: str, launcher: str) -> None:
    """Checks that the host of rank 0 is known; torch would wait for it for minutes.

    Raises:
        LaunchError: If the host has no address on this machine.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise LaunchError(
            f'the host of rank 0, {host}, has no address on {socket.gethostname()} '
            f'({error.strerror}); give a name that has one, or the address, to all ranks: '
            f'{_SETTINGS[launcher].format("MASTER_ADDR=10.0.0.7")}'
        ) from None


def check_port(port: int, launcher: str) -> None:
    """Checks on the host of rank 0 that nothing listens on a port.

    Raises:
        LaunchError: If the port cannot be used; says how to choose another one.
    """
    with socket.socket() as probe:
        # Connections of an earlier job that are still being closed do no harm.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', port))
        except OSError as error:
            reason = (
                'is taken by another process'
                if error.errno == errno.EADDRINUSE
                else f'cannot be used ({error.strerror})'
            )
            raise LaunchError(
                f'port {port} of {socket.gethostname()} {reason}; choose one that is '
                f'free, for all ranks: {_SETTINGS[launcher].format("MASTER_PORT=29512")}'
            ) from None


def _master_addr(launcher: str, environ: Mapping[str, str]) -> str:
    if 'MASTER_ADDR' in environ:
        return environ['MASTER_ADDR']
    if launcher == 'slurm':
        nodes = 'SLURM_STEP_NODELIST'  # a step may run on some of the job's nodes
        if nodes not in environ:
            nodes = 'SLURM_NODELIST'
        return _first_host(_value(nodes, launcher, environ))
    if launcher == 'mpi':
        size = environ['OMPI_COMM_WORLD_SIZE']
        if environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', size) == size:
            return '127.0.0.1'
        raise LaunchError(
            'MASTER_ADDR is not set, and the ranks are on several nodes '
            f'({environ["OMPI_COMM_WORLD_LOCAL_SIZE"]} of {size} are on this one); mpirun does '
            'not tell the host of rank 0, so name it: '
            f'{_SETTINGS[launcher].format("MASTER_ADDR=FIRST_HOST")}'
        )
    return _value('MASTER_ADDR', launcher, environ)


def _first_host(nodes: str) -> str:
    """The first host of a list of SLURM, such as ``node[3-5,9],login1``."""
    if not re.search(r'[\[,]', nodes):
        return nodes
    hint = 'set MASTER_ADDR to the host of rank 0: export MASTER_ADDR=HOST'
    try:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        raise LaunchError(
            f'scontrol, which expands the node list {nodes}, is not in the PATH; {hint}'
        ) from None
    if hosts.returncode != 0 or not hosts.stdout.split():
        raise LaunchError(
            f'scontrol cannot expand the node list {nodes}: {hosts.stderr.strip()}; {hint}'
        )
    return hosts.stdout.split()[0]


def _master_port(launcher: str, environ: Mapping[str, str]) -> int:
    """The port of the user, or else one that the ranks of this launch alone agree on."""
    if 'MASTER_PORT' in environ or launcher == 'pytorch':
        return _number('MASTER_PORT', launcher, environ)
    if launcher == 'mpi':
        # It identifies the mpirun; it is absent where the variables were set by hand.
        name = environ.get('PMIX_NAMESPACE')
        if name is None:
            return _DEFAULT_PORT
        return _FIRST_PORT + zlib.crc32(name.encode()) % _NUM_PORTS
    reserved = re.match(r'\d+', environ.get('SLURM_STEP_RESV_PORTS', ''))
    if reserved:
        return int(reserved.group())
    job = _number('SLURM_JOB_ID', launcher, environ)
    step = _number('SLURM_STEP_ID', launcher, environ)
    return _FIRST_PORT + (job + _PORTS_A_STEP * step) % _NUM_PORTS


def _value(name: str, launcher: str, environ: Mapping[str, str]) -> str:
    if not environ.get(name):
        raise LaunchError(
            f'{name} is not set, but launcher={launcher!r} needs it. It is set by: '
            f'{_COMMANDS[launcher]}'
        )
    return environ[name]


def _number(name: str, launcher: str, environ: Mapping[str, str]) -> int:
    value = _value(name, launcher, environ)
    if not value.isdecimal():
        raise LaunchError(
            f'{name} is {value!r}; expected a number. For launcher={launcher!r} it is set by: '
            f'{_COMMANDS[launcher]}'
        )
    return int(value)


def _start_gloo(cfg: Config, timeout: float | None) -> None:
    """Does what MMEngine does for ranks with a CUDA device, in the places that need it."""
    # MMEngine selects a CUDA device when it starts the group; an existing group it uses.
    if not torch_dist.is_initialized():
        options: dict[str, Any] = {}
        if timeout is not None:
            options['timeout'] = datetime.timedelta(seconds=timeout)
        torch_dist.init_process_group('gloo', **options)
    # MMEngine passes a CUDA device to the wrapper of the model, unless the config has one.
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = wrapper
    strategy = cfg.get('strategy') or dict(type='DDPStrategy')  # what a FlexibleRunner takes
    if cfg.get('runner_type') and builds(strategy, DDPStrategy, STRATEGIES):
        cfg.strategy = {'model_wrapper': wrapper, **strategy}
