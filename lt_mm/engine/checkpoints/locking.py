"""One training process for a folder of checkpoints."""

import datetime
import logging
import os
import socket
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy knows the module only as a module

_NAME = '.training.lock'
_HELD: dict[Path, IO[str]] = {}


def lock_folder(folder: str | Path) -> None:
    """Takes a folder for this process until :func:`unlock_folder`, or until the process ends.

    The lock is one of the operating system. It ends with its process, however that ends, and
    worker processes do not inherit it. Where the file system has no locks, or on Windows, a
    warning is logged and nothing is locked.

    Args:
        folder: The folder; made if it is missing.

    Raises:
        RuntimeError: If another process has the folder. Names that process.
    """
    path = Path(folder).resolve() / _NAME
    # POSIX ends the locks of a file when the process closes that file anywhere.
    if path in _HELD:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'a+')  # noqa: SIM115 (it stays open as long as the lock is held)
    try:
        _lock(file)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = file.read().strip() or 'another process'
        file.close()
        raise RuntimeError(
            f'{path.parent} is in use by {owner}. Two trainings in one folder would overwrite '
            "each other's checkpoints; wait until the other one has ended, stop it, or choose "
            'another folder: --work-dir work_dirs/another'
        ) from None
    except OSError as error:
        file.close()
        print_log(f'{path.parent} is not locked: {error}', 'current', logging.WARNING)
        return
    now = datetime.datetime.now().isoformat(' ', 'seconds')
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}, which started training at {now}')
    file.flush()
    _HELD[path] = file


def unlock_folder(folder: str | Path) -> None:
    """Gives back a folder that this process may have taken."""
    file = _HELD.pop(Path(folder).resolve() / _NAME, None)
    if file is not None:
        file.close()


def _lock(file: IO[str]) -> None:
    if fcntl is None:
        raise OSError('Python has no file locks on this system')
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
