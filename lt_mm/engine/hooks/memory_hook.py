"""The hook that saves what heads remember, beside the checkpoints."""

import io
import logging
import os.path as osp
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper

from lt_mm.engine.checkpoints import (
    AtomicBackend,
    UntrustedCheckpointError,
    check_strategy,
    load_weights_only,
)
from lt_mm.models.memory import HeadMemory
from lt_mm.registry import HOOKS, register

_SUFFIX = '.memory'
_META = 'lt_memory'


@register(HOOKS)
class MemoryHook(Hook):
    """Saves the memories of wrapped heads beside the checkpoints, and loads them on resuming.

    ``custom_hooks = [dict(type='lt_mm.MemoryHook')]``; tools/train.py adds it. A checkpoint
    stays that of the stock head, and names a file ``iter_<iterations>_<random>.memory`` in the
    work directory, which is written whole before it and is loaded without running code from
    it. Without the file, the memory begins empty, and the log says so. Runs without
    ``memory=dict(...)`` are left as they are.

    Args:
        max_keep: So many of the files are kept, the newest ones. The newest is that of the last
            checkpoint, or of one that is just being written; so 2 at least.

    Raises:
        ValueError: If ``max_keep`` is below 2.
    """

    priority = 'LOW'

    def __init__(self, max_keep: int = 2) -> None:
        if max_keep < 2:
            raise ValueError(
                f'max_keep is {max_keep}; expected 2 or more, since a run may be killed between '
                'the file of the memory and its checkpoint'
            )
        self.max_keep = max_keep
        self._meta: dict[str, Any] = {}
        self._saved: tuple[int, str] | None = None

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self._meta = checkpoint.get('meta', {})

    def before_train(self, runner: Any) -> None:
        if memories_of(runner.model):
            check_strategy(runner)
        if runner.iter > 0:
            folders = [runner.work_dir, osp.dirname(str(runner._load_from or ''))]
            load_memories(runner.model, self._meta, folders)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        # Called on the main process alone; all hold the same memory.
        memories = memories_of(runner.model)
        if not memories:
            return
        num_iters = checkpoint['meta']['iter']
        if self._saved is None or self._saved[0] != num_iters:
            name = f'iter_{num_iters}_{secrets.token_hex(4)}{_SUFFIX}'
            self._save(Path(runner.work_dir), name, memories)
            self._saved = num_iters, name
        checkpoint['meta'][_META] = self._saved[1]

    def _save(self, folder: Path, name: str, memories: dict[str, HeadMemory]) -> None:
        states = {head: memory.state_dict() for head, memory in memories.items()}
        buffer = io.BytesIO()
        torch.save(states, buffer)
        AtomicBackend().put(buffer.getvalue(), folder / name)
        files = sorted(folder.glob(f'iter_*{_SUFFIX}'), key=lambda path: path.stat().st_mtime_ns)
        for path in files[: -self.max_keep]:
            path.unlink(missing_ok=True)


def load_memories(model: Any, meta: Mapping[str, Any], folders: Sequence[str]) -> None:
    """Loads what the heads of a model remembered when a checkpoint was saved.

    Where it is not found, the memories begin empty, and the log says so.

    Args:
        model: The model, wrapped for several ranks or not.
        meta: Of the checkpoint; it names the file.
        folders: Where the file may be.

    Raises:
        UntrustedCheckpointError: If the file holds code.
    """
    memories, name = memories_of(model), meta.get(_META)
    if not memories:
        return
    if not isinstance(name, str):
        _say_empty('the checkpoint names no file of a memory')
        return
    # A name alone: a checkpoint cannot point elsewhere.
    paths = [path for folder in folders if (path := Path(folder, Path(name).name)).is_file()]
    if not paths:
        _say_empty(f'there is no {name} in {" or ".join(folders)}')
        return
    try:
        states = load_weights_only(str(paths[0]), 'cpu')
    except UntrustedCheckpointError:
        raise
    except (RuntimeError, EOFError, OSError) as error:
        _say_empty(f'{paths[0]} cannot be loaded: {error}')
        return
    for head, memory in memories.items():
        if states.get(head):
            memory.load_state_dict(states[head])
            count = len(states[head]['keys'])
            print_log(f'{head} remembers {count} instances, from {paths[0].name}', 'current')
        else:
            _say_empty(f'{paths[0]} holds nothing of {head}')


def memories_of(model: Any) -> dict[str, HeadMemory]:
    """The memories of the heads of a model, by their names in it."""
    module = model.module if is_model_wrapper(model) else model
    return {
        name: part.lt_memory
        for name, part in module.named_modules()
        if getattr(part, 'lt_memory', None) is not None
    }


def _say_empty(reason: str) -> None:
    print_log(
        f'The memory begins empty: {reason}. Until an epoch is over, instances have no earlier '
        'predictions to be compared with',
        'current',
        logging.WARNING,
    )
