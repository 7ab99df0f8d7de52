"""Checkpoints are loaded without running code from them."""

import contextlib
import functools
import logging
import os
import os.path as osp
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local

from lt_mm.compat import release_key

_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_NOT = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# Before it, a type could not be allowed under another name than its own.
_OLDEST_TORCH = '2.6'


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint was refused, because loading it would run code from the file."""


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
