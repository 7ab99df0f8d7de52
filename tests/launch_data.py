"""A training that takes a second, to be launched in processes of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from tests.configs.made_data import use_made_data, write_pictures
from tests.paths import CONFIGS, REPOSITORY
from tests.rank_records import read_ranks

_LAUNCHERS_PREFIXES = ('SLURM', 'SBATCH', 'OMPI', 'PMIX', 'MASTER_', 'TORCHELASTIC')
_LAUNCHERS_NAMES = (
    'RANK',
    'WORLD_SIZE',
    'LOCAL_RANK',
    'NNODES',
    'NODE_RANK',
    'PORT',
    'GPUS',
    'GPUS_PER_NODE',
    'SRUN_ARGS',
    'WAIT',
    'GRACE',
)
STEPS_AN_EPOCH = 3  # 12 sources, each four times, on two ranks with batches of 8


def write_config(folder: Path, **more: Any) -> Path:
    """A classifier on made pictures, whose ranks write records; returns its path."""
    cfg = Config.fromfile(str(CONFIGS / 'resnet18_cifar10_lt.py'))
    write_pictures(folder / 'pictures')
    use_made_data(cfg, folder, folder / 'pictures', folder)
    cfg.merge_from_dict(
        {
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader': None,
            'val_cfg': None,
            'val_evaluator': None,
            'test_dataloader': None,
            'test_cfg': None,
            'test_evaluator': None,
            'train_cfg.max_epochs': 1,
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.head.head.in_channels': 64,
            'model.head.head.num_classes': 2,
            'data_preprocessor.num_classes': 2,
            'default_hooks.logger.interval': 1,
            'randomness': dict(seed=0),
            'custom_imports': dict(imports=['tests.rank_records']),
            'custom_hooks': [dict(type='WriteRankRecords')],
            **more,
        }
    )
    path = folder / 'small.py'
    cfg.dump(str(path))
    return path


def environment(**more: str) -> dict[str, str]:
    """One thread, no GPU, this Python, and nothing that a launcher has set."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(_LAUNCHERS_PREFIXES) and key not in _LAUNCHERS_NAMES
    }
    path = f'{Path(sys.executable).parent}{os.pathsep}{inherited.get("PATH", "")}'
    return dict(
        inherited,
        PATH=path,
        PYTHONPATH=str(REPOSITORY),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='',
        **more,
    )


def start(command: Sequence[str], **more: str) -> subprocess.Popen:
    """Starts a process of a launch, with its output in a pipe."""
    return subprocess.Popen(
        [str(part) for part in command],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: Sequence[subprocess.Popen], seconds: float = 200) -> Sequence[str]:
    """Waits until all have succeeded; returns their outputs."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-3000:]
    return outputs


def assert_trained_alike(
    work_dir: Path, epochs: int = 1, local_ranks: Sequence[int] = (0, 1)
) -> Sequence[dict[str, Any]]:
    """Both ranks took every step and hold the same weights; returns their records."""
    ranks = read_ranks(work_dir)
    assert len(ranks) == 2
    for record in ranks:
        assert record['world_size'] == 2
        assert record['iter'] == epochs * STEPS_AN_EPOCH
    assert tuple(record['local_rank'] for record in ranks) == tuple(local_ranks)
    assert ranks[0]['digest'] == ranks[1]['digest']
    assert ranks[0]['port'] == ranks[1]['port']
    assert (work_dir / f'epoch_{epochs}.pth').is_file()
    return ranks
