"""Which checkpoint a run is resumed from, and the file that names the last one."""

import codecs
import locale
import logging
import numbers
import os
import os.path as osp
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from lt_mm.engine.checkpoints.atomic_files import AtomicBackend
from lt_mm.engine.checkpoints.loading import load_weights_only
from lt_mm.engine.checkpoints.refusals import (
    DamagedCheckpointError,
    UntrustedCheckpointError,
    check_intact,
    is_zip,
)

_LAST = 'last_checkpoint'
_MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}


def write_last_checkpoint(work_dir: str, checkpoint: str | Path) -> None:
    """Writes the path of the last checkpoint where MMEngine looks for it, in one step.

    The bytes are those of the path on the disk, whatever the locale is: UTF-8, but for folders
    whose names are not.
    """
    AtomicBackend().put(os.fsencode(checkpoint), osp.join(work_dir, _LAST))


def read_last_checkpoint(work_dir: str | Path) -> str | None:
    """The path in ``last_checkpoint``; None if that file is missing, empty or holds no path.

    It may have been written in another encoding than that of the file system, such as that of the
    locale, which the stock hook takes, with or without a byte order mark.
    """
    path = Path(work_dir, _LAST)
    if not path.is_file():
        return None
    content = path.read_bytes()
    marked = [encoding for mark, encoding in _MARKS.items() if content.startswith(mark)]
    decoded = [content.decode(encoding, 'replace') for encoding in marked]
    decoded += [content.decode(sys.getfilesystemencoding(), 'surrogateescape')]
    decoded += [content.decode(locale.getpreferredencoding(False), 'replace')]
    texts = [text.strip() for text in (*decoded, content.decode('latin-1'))]
    existing = (text for text in texts if osp.isfile(text))
    return next(existing, texts[0] if texts[0].isprintable() else None) or None


def find_resumable(work_dir: str | Path, trusted: bool = False) -> str | None:
    """The checkpoint that a run is resumed from: the newest that can be loaded.

    This is the checkpoint that ``last_checkpoint`` names, if it can be loaded. Otherwise it
    is the one with the most iterations among the ``*.pth`` files, in ``work_dir`` and beside
    the named checkpoint, that can be loaded and hold the state of an optimizer. Files that
    are passed over are logged with the reason.

    Args:
        work_dir: Folder of a run; may be missing.
        trusted: Whether files may run code when they are loaded.

    Returns:
        Its path; None if there is no checkpoint to resume from.

    Raises:
        UntrustedCheckpointError: If the named checkpoint would run code. It is whole, so that
            no older one takes its place.
    """
    named = read_last_checkpoint(work_dir)
    if named is not None and ('://' in named or _state(named, trusted, is_named=True) is not None):
        return named
    folders = {Path(work_dir).resolve()}
    if named is not None:
        folders.add(Path(named).resolve().parent)
    found = [
        (int(state['meta']['iter']), osp.getmtime(path), str(path))
        for folder in folders
        for path in folder.glob('*.pth')
        if named is None or path != Path(named).resolve()
        if (state := _state(str(path), trusted)) is not None
        # The best checkpoints and published ones hold no optimizer.
        if 'optimizer' in state
    ]
    path = max(found)[-1] if found else None
    if named is not None:
        print_log(f'Resuming from {path} instead of {named!r}', 'current', logging.WARNING)
    return path


def check_resumable(path: str, trusted: bool = False) -> dict[str, Any]:
    """Loads the checkpoint of a run, to make sure that the run can be resumed from it.

    Args:
        path: Path of a file.
        trusted: As in :func:`find_resumable`.

    Returns:
        Its content.

    Raises:
        ValueError: If it holds weights, but not the state of a run.
        UntrustedCheckpointError: If it would run code.
        DamagedCheckpointError: If it cannot be read.
    """
    checkpoint = _load(path, trusted)
    missing = _missing_part(checkpoint)
    if missing is not None:
        raise ValueError(
            f'{path} is not the checkpoint of a run: it has no {missing}. To start a new '
            f'training from its weights: --cfg-options load_from={path}, without --resume'
        )
    return checkpoint


def _state(path: str, trusted: bool, is_named: bool = False) -> dict[str, Any] | None:
    """The content of a checkpoint; None, with a line in the log, if it cannot be resumed.

    Raises:
        UntrustedCheckpointError: If it would run code and ``last_checkpoint`` names it.
    """
    try:
        return check_resumable(path, trusted)
    except UntrustedCheckpointError as error:
        if is_named:
            raise
        reason = str(error)
    except DamagedCheckpointError as error:
        reason = error.fault
    except Exception as error:  # whatever is wrong with a file, another one may be sound
        reason = f'{type(error).__name__}: {error}'
    print_log(f'Passed over {path!r}: {reason}', 'current', logging.WARNING)
    return None


def _load(path: str, trusted: bool) -> Any:
    if trusted:
        check_intact(path)
        return torch.load(path, 'cpu', weights_only=False, mmap=is_zip(path))
    return load_weights_only(path, 'cpu', mmap=True)


def _missing_part(checkpoint: Any) -> str | None:
    """What MMEngine needs to resume a run and a checkpoint lacks."""
    if not isinstance(checkpoint, dict):
        return 'state_dict'
    meta = checkpoint.get('meta')
    for key in ('epoch', 'iter'):
        if not isinstance(meta, dict) or not isinstance(meta.get(key), numbers.Integral):
            return f'meta[{key!r}]'
    return next((key for key in ('message_hub', 'state_dict') if key not in checkpoint), None)
