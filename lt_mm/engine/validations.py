"""Which validations of a training came to their end."""

import bisect
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import EpochBasedTrainLoop

from lt_mm.engine.checkpoints.atomic_files import AtomicBackend

_NAME = '.validated'


class ValidationRecord:
    """The iterations after which a validation was completed, in a file of the work directory.

    A checkpoint is written before the validation that follows it, so it cannot tell whether
    the validation came to its end before the process was killed. All ranks go by the file that
    the main process reads.

    Args:
        runner: At the iteration where its training begins; what an earlier run has validated
            after that is forgotten.
    """

    def __init__(self, runner: Any) -> None:
        self._path = Path(runner.work_dir, _NAME)
        # The run may have had another work directory, which the checkpoint is in.
        paths = self._path, Path(str(runner._load_from or '')).parent / _NAME
        path = next((path for path in paths if path.is_file()), None)
        words = path.read_text(errors='replace').split() if path and runner.iter else []
        found = {int(word) for word in words if word.isdecimal()}
        shared = [sorted(each for each in found if each <= runner.iter)]
        broadcast_object_list(shared)
        self._iterations = shared[0]
        if self._path.is_file() or self._iterations:
            self._write()

    def has(self, iteration: int) -> bool:
        """Whether the validation after an iteration is complete."""
        return iteration in self._iterations

    def add(self, iteration: int) -> None:
        """Writes down that a validation is complete."""
        self._iterations.append(iteration)
        self._write()

    def _write(self) -> None:
        if is_main_process():
            text = ''.join(f'{each}\n' for each in self._iterations)
            AtomicBackend().put_text(text, self._path)


def validation_follows(runner: Any, meta: dict[str, Any]) -> bool:
    """Whether the training loop validates next, if a checkpoint is saved with this position."""
    loop = runner.train_loop
    if runner.val_loop is None or not hasattr(loop, 'dynamic_milestones'):
        return False
    if isinstance(loop, EpochBasedTrainLoop):
        count, now, end = meta['epoch'], loop.epoch, loop.max_epochs
    else:
        count, now, end = meta['iter'], loop.iter, loop.max_iters
    if count != now + 1:  # saved between steps, not at the end of one
        return False
    step = bisect.bisect(loop.dynamic_milestones, count + 1)
    return count >= loop.val_begin and (
        count % loop.dynamic_intervals[step - 1] == 0 or count == end
    )
