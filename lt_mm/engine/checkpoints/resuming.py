"""Which checkpoint a run is resumed from, and the file that names the last one."""

import codecs
import logging
import os
import os.path as osp
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from lt_mm.engine.checkpoints.atomic_files import AtomicBackend
from lt_mm.engine.checkpoints.loading import load_weights_only
from lt_mm.engine.checkpoints.refusals import UntrustedCheckpointError, is_complete

_LAST = 'last_checkpoint'
_MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}


def write_last_checkpoint(work_dir: str, checkpoint: str | Path) -> None:
    """Writes the path of the last checkpoint where MMEngine looks for it, in one step."""
    AtomicBackend().put(os.fsencode(checkpoint), osp.join(work_dir, _LAST))


def read_last_checkpoint(work_dir: str | Path) -> str | None:
    """The path in ``last_checkpoint``; None if that file is missing, empty or holds no path.

    The bytes are those of the path, whatever the encoding of the file system is. An editor may
    have put a mark of UTF-8 or UTF-16 before them.
    """
    path = Path(work_dir, _LAST)
    if not path.is_file():
        return None
    content = path.read_bytes()
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            text = content.decode(encoding, errors='replace')
            break
    else:
        text = os.fsdecode(content)
    text = text.strip()
    return text if text and text.isprintable() or osp.exists(text) else None


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
        Its path; None if there is no checkpoint to resume from. A named checkpoint that would
        run code is returned too, so that the run refuses it instead of an older one being
        resumed.
    """
    named = read_last_checkpoint(work_dir)
    if named is not None and ('://' in named or _num_iters(named, trusted, True) is not None):
        return named
    folders = {Path(work_dir).resolve()}
    if named is not None:
        folders.add(Path(named).resolve().parent)
    found = [
        (num_iters, osp.getmtime(path), str(path))
        for folder in folders
        for path in folder.glob('*.pth')
        if str(path) != str(named) and (num_iters := _num_iters(str(path), trusted)) is not None
    ]
    if not found:
        return None
    path = max(found)[-1]
    if named is not None:
        print_log(f'Resuming from {path} instead of {named!r}', 'current', logging.WARNING)
    return path


def check_resumable(path: str, trusted: bool = False) -> None:
    """Makes sure that a run can be resumed from a file, before it is started.

    Args:
        path: Path of a file.
        trusted: As in :func:`find_resumable`.

    Raises:
        ValueError: If it holds weights, but not the state of a run.
        UntrustedCheckpointError: If it would run code.
        DamagedCheckpointError: If it cannot be read.
    """
    missing = _missing_parts(_load(path, trusted))
    if missing:
        raise ValueError(
            f'{path} is not the checkpoint of a run: it has no {missing[0]}. To start a new '
            f'training from its weights: --cfg-options load_from={path}, without --resume'
        )


def _num_iters(path: str, trusted: bool, is_named: bool = False) -> int | None:
    """Iterations done in a checkpoint; None, with a line in the log, if it cannot be resumed."""
    reason = None
    try:
        checkpoint = _load(path, trusted)
        missing = _missing_parts(checkpoint)
        if missing:
            reason = f'it is not the checkpoint of a run: it has no {missing[0]}'
        elif 'optimizer' not in checkpoint:
            # The best checkpoints and published ones hold no optimizer.
            if not is_named:
                return None
        elif not is_complete(path):  # tensors are not read yet
            reason = 'the file is damaged'
    except UntrustedCheckpointError as error:
        if is_named:
            return 0
        reason = str(error)
    except Exception as error:  # whatever is wrong with a file, another one may be sound
        reason = str(error)
    if reason is not None:
        print_log(f'Passed over {path!r}: {reason}', 'current', logging.WARNING)
        return None
    return int(checkpoint['meta']['iter'])


def _load(path: str, trusted: bool) -> Any:
    if trusted:
        return torch.load(path, 'cpu', weights_only=False)
    return load_weights_only(path, 'cpu', mmap=True)


def _missing_parts(checkpoint: Any) -> list[str]:
    """What MMEngine needs to resume a run and a checkpoint lacks."""
    needed = {
        "meta['epoch']": ('meta', 'epoch'),
        "meta['iter']": ('meta', 'iter'),
        'message_hub': ('message_hub',),
        'state_dict': ('state_dict',),
    }
    missing = []
    for name, path in needed.items():
        value = checkpoint
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None or path[0] == 'meta' and not isinstance(value, int):
            missing.append(name)
    return missing
