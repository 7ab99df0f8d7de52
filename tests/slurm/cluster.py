"""A SLURM cluster of two nodes on loopback, in a folder of its own, for tests.

Both nodes are this machine, on which SLURM's daemon for a node runs twice. Their names,
node1 and node2, are SLURM's alone: no host has them.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'squeue')
_START_SECONDS = 30

# AuthInfo: SLURM holds a requeued job back for as long as a credential is valid.
# Partition urgent preempts the others: their jobs get SIGTERM, and GraceTime to stop.
_SLURM_CONF = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PartitionName=normal Nodes=node[1-2] Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-2] PriorityTier=2 PreemptMode=OFF
"""


def why_unavailable() -> str | None:
    """Why a cluster cannot be started here; None where it can."""
    missing = [program for program in PROGRAMS if _find(program) is None]
    if missing:
        return f'{", ".join(missing)} not installed (Debian: slurm-wlm, munge)'
    if os.geteuid() != 0:
        return f'slurmd needs root, the tests run as {getpass.getuser()}'
    return None


class Cluster:
    """A running cluster.

    Attributes:
        root: Its folder: configuration, state, logs.
        environment: Environment in which SLURM's commands speak to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = dict(_without_slurm(os.environ), SLURM_CONF=str(root / 'slurm.conf'))

    def run(self, *command: str) -> str:
        """Standard output of one of SLURM's commands."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f'{command}: {done.stderr}'
        return done.stdout

    def state(self, job: str) -> str:
        """The job's state, such as RUNNING, as ``scontrol show job`` gives it."""
        fields = self.run('scontrol', '--oneliner', 'show', 'job', job).split()
        return next(field.partition('=')[2] for field in fields if field.startswith('JobState='))

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return '\n'.join(
            f'--- {path.name}\n{path.read_text()[-3000:]}'
            for path in sorted(self.root.glob('*.log'))
        )


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Starts a cluster, and stops it whatever happens in between.

    Raises:
        RuntimeError: If a daemon does not come up; with the logs.
    """
    # Not pytest's folder: munge wants one that every user can enter, and a Unix
    # socket's path is short.
    root = Path(tempfile.mkdtemp(prefix='lt-slurm-', dir='/tmp'))
    root.chmod(0o755)
    cluster = Cluster(root)
    daemons: list[subprocess.Popen] = []
    try:
        _write_configuration(root)
        daemons.append(
            _start(
                cluster,
                'munged',
                '--foreground',
                '--force',
                *(
                    f'--{option}={root}/munge.{ending}'
                    for option, ending in (
                        ('socket', 'socket'),
                        ('key-file', 'key'),
                        ('pid-file', 'pid'),
                        ('seed-file', 'seed'),
                        ('log-file', 'log'),
                    )
                ),
            )
        )
        _wait_for(cluster, daemons, (root / 'munge.socket').exists)
        daemons.append(_start(cluster, 'slurmctld', '-D'))
        for node in ('node1', 'node2'):
            daemons.append(_start(cluster, 'slurmd', '-D', '-N', node))
        _wait_for(cluster, daemons, lambda: _idle(cluster))
        yield cluster
    finally:
        if len(daemons) == 4:
            _kill_jobs(cluster)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(root, ignore_errors=True)


def _kill_jobs(cluster: Cluster) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            ['scancel', '--signal=KILL', '--full', '--user=root'],
            timeout=10,
            env=cluster.environment,
            capture_output=True,
        )


def _find(program: str) -> str | None:
    # Debian's users have no sbin in their PATH.
    return shutil.which(program, path=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')


def _without_slurm(environ) -> dict[str, str]:
    """The variables without those of a surrounding job, which SLURM's commands would obey."""
    return {
        key: value
        for key, value in environ.items()
        if not key.startswith(('SLURM', 'SBATCH', 'SRUN', 'SQUEUE'))
    }


def _write_configuration(root: Path) -> None:
    (root / 'state').mkdir()
    (root / 'spool').mkdir()
    (root / 'munge.key').write_bytes(os.urandom(128))
    (root / 'munge.key').chmod(0o400)
    (root / 'slurm.conf').write_text(
        _SLURM_CONF.format(
            name=root.name.lower().replace('_', ''),
            root=root,
            host=socket.gethostname().partition('.')[0],
            ports=_free_ports(3),
        )
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(('127.0.0.1', 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _start(cluster: Cluster, program: str, *arguments: str) -> subprocess.Popen:
    with open(cluster.root / f'{program}.out.log', 'a') as output:
        return subprocess.Popen(
            [_find(program), *arguments],
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _idle(cluster: Cluster) -> bool:
    found = subprocess.run(
        ['sinfo', '--noheader', '--format=%D %T', '-p', 'normal'],
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    return found.stdout.split() == ['2', 'idle']


def _wait_for(cluster: Cluster, daemons: list[subprocess.Popen], ready) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        stopped = [daemon.args[0] for daemon in daemons if daemon.poll() is not None]
        if stopped or time.monotonic() > deadline:
            raise RuntimeError(f'SLURM does not start here, stopped: {stopped}\n{cluster.logs()}')
        time.sleep(0.1)
