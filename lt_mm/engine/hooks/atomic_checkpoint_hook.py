"""The stock hook that saves checkpoints, made safe against being killed."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log

from lt_mm.engine.checkpoints.atomic_files import ATOMIC, remove_partial_files
from lt_mm.engine.checkpoints.finite_weights import nonfinite_weights
from lt_mm.engine.checkpoints.locking import lock_folder, unlock_folder
from lt_mm.engine.checkpoints.resuming import write_last_checkpoint
from lt_mm.engine.checkpoints.strategies import check_strategy
from lt_mm.registry import HOOKS, register


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """The stock ``CheckpointHook``, safe against being killed at any moment.

    A checkpoint gets its name only when it is complete, ``last_checkpoint`` is written
    after it and in one step, and the files that ``max_keep_ckpts`` and ``save_best`` make
    superfluous are removed last. The stock hook removes first and writes into the final
    file. In folders that are not on this machine (``out_dir='s3://...'``), files are
    removed last as well, but written as the stock hook writes them.

    The hook locks the folders that it writes to while the training runs, and removes what
    processes that were killed have left there. It removes files in the folder of the checkpoints
    only: their names come from the checkpoint that a run is resumed from. Weights that are NaN or
    infinite are not saved.

    A ``FlexibleRunner`` needs the single-device strategy or DDP's; with the others, training is
    refused (:func:`lt_mm.engine.checkpoints.check_strategy`).

    Takes the arguments of the stock hook. Overrides its private methods
    ``_save_checkpoint_with_step`` and ``_save_best_checkpoint``.
    """

    file_backend: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._locked: list[str] = []

    def before_train(self, runner: Any) -> None:
        check_strategy(runner)
        info = runner.message_hub.runtime_info
        if 'keep_ckpt_ids' in info:  # they become parts of paths
            steps = [step for step in info['keep_ckpt_ids'] if isinstance(step, int)]
            runner.message_hub.update_info('keep_ckpt_ids', steps)
        super().before_train(runner)
        is_local = isinstance(self.file_backend, LocalBackend)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = ATOMIC
        self._lock([runner.work_dir, *([self.out_dir] if is_local else [])])

    def after_train(self, runner: Any) -> None:
        self.unlock()

    def unlock(self) -> None:
        """Gives back the folders, also after a training that failed."""
        for folder in self._locked:
            unlock_folder(folder)
        self._locked = []

    def _lock(self, folders: list[str]) -> None:
        """Takes the folders for this training; raises on all ranks if another one has them."""
        errors: list[str | None] = [None]
        if is_main_process():
            try:
                for folder in folders:
                    lock_folder(folder)
                    self._locked.append(folder)
                    remove_partial_files(folder)
            except RuntimeError as error:
                self.unlock()
                errors = [str(error)]
        broadcast_object_list(errors)
        if errors[0] is not None:
            raise RuntimeError(errors[0])

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        if _is_refused(runner, name):
            return
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        superseded = self._keep(runner, step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_last_checkpoint(runner.work_dir, self.last_ckpt)
            self._remove(superseded)

    def _keep(self, runner: Any, step: int) -> list[str]:
        """Adds a step to those that are kept; returns the paths that become superfluous."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return []
        surplus = []
        if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            surplus.append(self.file_backend.join_path(self.out_dir, name))
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return surplus

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        if _is_refused(runner, 'the best checkpoint'):
            return
        # The stock method removes the old best checkpoint through this backend.
        backend, self.file_backend = self.file_backend, _Keeping(self.file_backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            superseded, self.file_backend = self.file_backend.superseded, backend
        written = {
            self.last_ckpt,
            getattr(self, 'best_ckpt_path', None),
            *getattr(self, 'best_ckpt_path_dict', {}).values(),
        }
        self._remove(path for path in superseded if path not in written)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            if not self._is_in_folder(path):
                continue
            if self.file_backend.isdir(path):  # DeepSpeed writes folders
                self.file_backend.rmtree(path)
            elif self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _is_in_folder(self, path: str) -> bool:
        if isinstance(self.file_backend, LocalBackend):
            return Path(path).resolve().parent == Path(self.out_dir).resolve()
        folder, _, name = str(path).rpartition('/')
        return folder == str(self.out_dir).rstrip('/') and name not in ('', '.', '..')


def _is_refused(runner: Any, name: str) -> bool:
    names = nonfinite_weights(runner.model)
    if names:
        print_log(
            f'{name} is not saved: {len(names)} weights are NaN or infinite, the first is '
            f'{names[0]}. The last checkpoint stays the one before',
            'current',
            logging.WARNING,
        )
    return bool(names)


class _Keeping:
    """A storage backend that collects the paths to remove instead of removing them."""

    def __init__(self, backend: Any) -> None:
        self.superseded: list[str] = []
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.superseded.append(path)

    rmtree = remove
