"""Loading checkpoints without running code from them.

:func:`checkpoint_loading` makes MMEngine load every checkpoint as
``torch.load(weights_only=True)`` does, with the few types that MMEngine itself puts into a
checkpoint added to those that torch allows. The configs in a checkpoint, which are strings
that MMEngine executes, are left out.
"""

import contextlib
import functools
import logging
import os
import os.path as osp
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_local
from packaging.version import Version

from lt_mm.engine.checkpoints.refusals import (
    UntrustedCheckpointError,
    check_intact,
    is_zip,
    refusal,
)

_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
_FORCE_NOT = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# Older versions allow a type under its own name only.
_OLDEST_TORCH = Version('2.6')


@contextlib.contextmanager
def checkpoint_loading(trusted: bool = False) -> Iterator[None]:
    """While the context is open, checkpoints are loaded without running code from them.

    This holds for all that MMEngine's ``CheckpointLoader`` loads (``resume``,
    ``load_from``, ``init_cfg=dict(type='Pretrained')``), from files and addresses alike.

    For this, the context replaces the loaders of MMEngine's ``CheckpointLoader``, a class
    that the whole process shares, through its ``register_scheme``, and sets torch's
    variable ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` for this process and its workers. Both are
    as before when the context is left. MMEngine has no way to list its loaders, so they are
    read from the private ``CheckpointLoader._schemes``.

    Args:
        trusted: Whether to load files that hold other things than weights, too, as
            MMEngine does. The author of such a file can run code here.

    Raises:
        UntrustedCheckpointError: When a file that is loaded in the context refers to a
            global that is not allowed. Names the file, the global and what to do.
        DamagedCheckpointError: When a file cannot be read. Names the file.
    """
    if trusted:
        print_log(
            'Checkpoints are trusted: loading one may run code from the file',
            'current',
            logging.WARNING,
        )
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
    """Sets one of torch's two variables and unsets the other; torch refuses to see both."""
    before = {key: os.environ.pop(key, None) for key in (_FORCE, _FORCE_NOT)}
    os.environ[name] = '1'
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({key: value for key, value in before.items() if value})


def _guarded(loader: Callable) -> Callable:
    """A loader of MMEngine that refuses code, and says why."""
    # The stock loader of files logs that it falls back to loading everything.
    load = load_weights_only if loader is load_from_local else loader

    @functools.wraps(loader)  # MMEngine logs the name of a loader
    def guarded(filename: str, map_location: Any = None) -> Any:
        with _refusing(filename):
            return _without_configs(load(filename, map_location=map_location))

    return guarded


def load_weights_only(filename: str, map_location: Any = None, mmap: bool = False) -> Any:
    """Loads a checkpoint of MMEngine, or a file of weights, without running code from it.

    Args:
        filename: Path of the file.
        map_location: As in ``torch.load``.
        mmap: Whether tensors are read from the disk only when they are used.

    Raises:
        FileNotFoundError: If there is no such file.
        UntrustedCheckpointError: As in :func:`checkpoint_loading`.
        DamagedCheckpointError: If the file cannot be read.
    """
    filename = osp.expanduser(filename)
    check_intact(filename)
    with _refusing(filename):
        mmap = mmap and is_zip(filename)  # torch cannot do it with the older format
        loaded = torch.load(filename, map_location, weights_only=True, mmap=mmap)
    return _without_configs(loaded)


def _without_configs(checkpoint: Any) -> Any:
    """Leaves out the configs in a checkpoint: Python code in strings.

    MMEngine executes ``meta['config']`` when a run is resumed, and its inferencers execute the
    others. A resumed run would also write the one in ``message_hub`` into its own checkpoints.
    """
    for path in (('meta', 'config'), ('meta', 'cfg'), ('message_hub', 'runtime_info', 'cfg')):
        holder = checkpoint
        for key in path[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
    return checkpoint


@contextlib.contextmanager
def _refusing(filename: str) -> Iterator[None]:
    if Version(torch.__version__) < _OLDEST_TORCH:
        raise UntrustedCheckpointError(
            f'{filename} was not loaded: torch {torch.__version__} cannot load it '
            f'without running code from it; expected torch {_OLDEST_TORCH} or newer. If you '
            'trust the file, pass --trust-checkpoint'
        )
    try:
        with torch.serialization.safe_globals(_allowed_globals()):
            yield
    except Exception as error:
        explained = refusal(filename, error)
        if explained is error:
            raise
        raise explained from error


@functools.cache
def _allowed_globals() -> list[Any]:
    """What MMEngine's checkpoints hold in addition to what torch allows.

    This is the history of the log (``HistoryBuffer`` and its methods), settings of data
    sets (``ConfigDict``), and numpy's arrays and numbers, under their names in numpy 1
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
    """Replaces ``getattr``, which would give a file access to everything."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        found = getattr(owner, '__name__', type(owner).__name__)
        raise pickle.UnpicklingError(f'GLOBAL {found}.{name}')
    return getattr(owner, name)
