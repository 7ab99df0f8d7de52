"""A hook for launched trainings, which write down what each of their ranks did.

Configs load it with ``custom_imports=dict(imports=['tests.rank_records'])``.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module(force=True)
class WriteRankRecords(Hook):
    """Writes ``rank<N>.json`` at the end, and a line of ``steps<N>.txt`` after each step.

    Args:
        pause: Seconds to wait after each step, for tests that interrupt.
    """

    priority = 'LOWEST'

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(Path(runner.work_dir, f'steps{runner.rank}.txt'), 'a') as file:
            # MMEngine counts the iteration after the hooks.
            file.write(f'{os.environ.get("SLURM_RESTART_COUNT", 0)} {runner.iter + 1}\n')
        time.sleep(self.pause)

    def after_train(self, runner):
        digest = hashlib.sha256()
        for parameter in runner.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        record = dict(
            digest=digest.hexdigest(),
            world_size=runner.world_size,
            iter=runner.iter,
            port=int(os.environ['MASTER_PORT']),
            local_rank=int(os.environ['LOCAL_RANK']),
        )
        Path(runner.work_dir, f'rank{runner.rank}.json').write_text(json.dumps(record))


def read_ranks(work_dir: Path) -> list[dict[str, Any]]:
    """The records of all ranks, by rank."""
    return [json.loads(path.read_text()) for path in sorted(work_dir.glob('rank*.json'))]
