"""Checkpoints that are whole or not there, and that run no code when they are loaded.

Writing: :class:`AtomicCheckpointHook`. Choosing what to go on from:
:func:`find_resumable`. Loading: :func:`checkpoint_loading`, within which MMEngine
loads every checkpoint as ``torch.load(weights_only=True)`` does, with the few types
that MMEngine itself puts into a checkpoint added to those that torch allows.
"""

import contextlib
import functools
import logging
import os
import os.path as osp
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local

from lt_mm.compat import release_key
from lt_mm.registry import HOOKS, register

ATOMIC = dict(backend='lt_mm_atomic')
_LAST = 'last_checkpoint'
_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_NOT = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# Before it, a type could not be allowed under another name than its own.
_OLDEST_TORCH = '2.6'


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint was refused, because loading it would run code from the file."""


@register_backend(ATOMIC['backend'])
class AtomicBackend(LocalBackend):
    """Files of this machine, each whole or as it was before, whenever the power fails.

    Bytes go to ``<name>.partial`` in the same folder and to the disk, and then take
    the place of the file in one step. Usable wherever MMEngine takes
    ``backend_args=dict(backend='lt_mm_atomic')``.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file.

        Args:
            obj: Its content.
            filepath: Its path; missing folders are made.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.partial')
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes a text file; arguments as in :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(folder: Path) -> None:
    """Brings the new name of a file to the disk."""
    if not hasattr(os, 'O_DIRECTORY'):  # Windows cannot, and need not
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@register(HOOKS)
class AtomicCheckpointHook(CheckpointHook):
    """The stock hook, safe against being killed at any moment.

    A checkpoint has its name only when it is whole, ``last_checkpoint`` is written
    after it and in one step, and what ``max_keep_ckpts`` and ``save_best`` remove goes
    last. The stock hook removes first and writes into the final file. Takes the
    arguments of the stock hook, whose order of the last two also holds for folders
    that are not on this machine (``out_dir='s3://...'``); those are written as they are.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = ATOMIC

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        name = self.filename_tmpl.format(step)
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

    def _keep(self, runner, step: int) -> list[str]:
        """Notes a step as kept; returns the paths that are one too many then."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return []
        surplus = []
        if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            surplus.append(self.file_backend.join_path(self.out_dir, name))
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return surplus

    def _save_best_checkpoint(self, runner, metrics) -> None:
        # The stock method removes the old best one through the backend of the hook.
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
            if self.file_backend.isdir(path):  # as DeepSpeed writes them
                self.file_backend.rmtree(path)
            elif self.file_backend.isfile(path):
                self.file_backend.remove(path)


class _Keeping:
    """A storage backend that takes notes instead of removing."""

    def __init__(self, backend: Any) -> None:
        self.superseded: list[str] = []
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.superseded.append(path)

    rmtree = remove


def write_last_checkpoint(work_dir: str, checkpoint: str) -> None:
    """Writes which checkpoint is the last one, in MMEngine's form, in one step."""
    AtomicBackend().put_text(str(checkpoint), osp.join(work_dir, _LAST))


def read_last_checkpoint(work_dir: str) -> str | None:
    """The path in ``last_checkpoint``; None without that file or with an empty one."""
    path = Path(work_dir, _LAST)
    return path.read_text().strip() or None if path.is_file() else None


def find_resumable(work_dir: str) -> str | None:
    """The checkpoint that a run goes on from: the newest complete one.

    That is the one that ``last_checkpoint`` names, if it is complete; else of the
    complete ``*.pth`` beside it, and in ``work_dir``, that hold the state of an
    optimizer the one with the most iterations. What is passed over is logged.

    Args:
        work_dir: Folder of a run; may be missing.

    Returns:
        Its path; None if there is nothing to go on from.
    """
    named = read_last_checkpoint(work_dir)
    if named is not None:
        if '://' in named or is_complete(named):
            return named
        _warn(f'{named}, the last checkpoint, is not complete: it is passed over')
    folders = {Path(work_dir).resolve()}
    if named is not None:
        folders.add(Path(named).resolve().parent)
    found = [
        (num_iters, path.stat().st_mtime, path)
        for folder in folders
        for path in folder.glob('*.pth')
        if (num_iters := _num_iters(path)) is not None
    ]
    for _, _, path in sorted(found, reverse=True):
        if is_complete(path):
            return str(path)
        _warn(f'{path} is not complete: it is passed over')
    return None


def is_complete(path: str | Path) -> bool:
    """Whether a file is a checkpoint as ``torch.save`` writes it, to the last byte."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _num_iters(path: Path) -> int | None:
    """Iterations done in a checkpoint; None if a run cannot go on from it."""
    try:
        checkpoint = load_weights_only(str(path), 'cpu', mmap=True)
    except (RuntimeError, EOFError, OSError) as error:
        _warn(f'{path} is passed over, it cannot be read: {error}')
        return None
    # The best checkpoints and the published ones have no optimizer.
    return checkpoint['meta']['iter'] if 'optimizer' in checkpoint else None


@contextlib.contextmanager
def checkpoint_loading(trusted: bool = False) -> Iterator[None]:
    """Within, MMEngine loads checkpoints without running code from them.

    This holds for what MMEngine's ``CheckpointLoader`` loads (``resume``,
    ``load_from``, ``init_cfg=dict(type='Pretrained')``), from files and addresses
    alike, and torch is told to refuse the other way in this process and its workers.

    Args:
        trusted: Whether to load files that hold other things than weights, too, as
            MMEngine does. Whoever wrote such a file runs code here.

    Raises:
        UntrustedCheckpointError: When a file within refers to another global than
            those of the list; names the file, the global and the hint.
    """
    if trusted:
        _warn('checkpoints are trusted: loading one may run code from the file')
    stock = {} if trusted else dict(CheckpointLoader._schemes)
    for prefix, loader in stock.items():
        CheckpointLoader.register_scheme(prefix, _guarded(loader), force=True)
    try:
        with _environment(_FORCE_NOT if trusted else _FORCE):
            yield
    finally:
        for prefix, loader in stock.items():
            CheckpointLoader.register_scheme(prefix, loader, force=True)


@contextlib.contextmanager
def _environment(name: str) -> Iterator[None]:
    """Sets one of torch's two variables; torch refuses to work with both."""
    before = {key: os.environ.pop(key, None) for key in (_FORCE, _FORCE_NOT)}
    os.environ[name] = '1'
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({key: value for key, value in before.items() if value})


def _guarded(loader: Callable) -> Callable:
    """A loader of MMEngine's that refuses with a reason."""
    # The stock one for files says that it falls back to loading everything.
    load = load_weights_only if loader is load_from_local else loader

    @functools.wraps(loader)  # MMEngine logs its name
    def guarded(filename: str, map_location: Any = None) -> Any:
        with _refusing(filename):
            return load(filename, map_location=map_location)

    return guarded


def load_weights_only(filename: str, map_location: Any = None, mmap: bool = False) -> Any:
    """Loads a checkpoint file of MMEngine's or of weights, and runs no code from it.

    Args:
        filename: Path of the file.
        map_location: As in ``torch.load``.
        mmap: Whether to leave the tensors on the disk until they are used.

    Raises:
        FileNotFoundError: If there is no such file.
        UntrustedCheckpointError: See :func:`checkpoint_loading`.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise FileNotFoundError(f'there is no checkpoint {filename}')
    with _refusing(filename):
        return torch.load(filename, map_location, weights_only=True, mmap=mmap or None)


@contextlib.contextmanager
def _refusing(filename: str) -> Iterator[None]:
    if release_key(torch.__version__) < release_key(_OLDEST_TORCH):
        raise UntrustedCheckpointError(
            f'{filename} was not loaded: torch {torch.__version__} cannot load it '
            f'without running code from it, torch {_OLDEST_TORCH} can. If you trust '
            'the file: --trust-checkpoint'
        )
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            yield
    except pickle.UnpicklingError as error:
        match = re.search(r'GLOBAL (\S+)', str(error))
        found = match[1] if match else f'something else ({error})'
        raise UntrustedCheckpointError(
            f'{filename} was not loaded: it holds {found}, which is neither a weight '
            'nor what MMEngine puts beside them, and loading it would run code from '
            'the file. If you trust its source, pass --trust-checkpoint, or convert '
            'it once: python -c "import torch; torch.save(torch.load('
            f"'{filename}', weights_only=False)['state_dict'], 'weights.pth')\""
        ) from error


@functools.cache
def _allowed_globals() -> list[Any]:
    """What MMEngine's checkpoints hold beside what torch allows.

    Histories of the log (``HistoryBuffer`` and its methods), settings that data sets
    keep (``ConfigDict``), and numpy's arrays and numbers, under the names of numpy 1
    and 2.
    """
    array, number = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in '?bhilqBHILQefdgFDGSUO'}
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        ConfigDict,
        np.ndarray,
        np.dtype,
        *dtypes,
        *((array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
        *((number, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    ]


def _history_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, with which a file could reach everything."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        found = getattr(owner, '__name__', type(owner).__name__)
        raise pickle.UnpicklingError(f'GLOBAL {found}.{name}')
    return getattr(owner, name)


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
