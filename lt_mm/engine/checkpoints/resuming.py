"""Which checkpoint a run goes on from."""

import logging
import os.path as osp
import zipfile
from pathlib import Path

from mmengine.logging import print_log

from lt_mm.engine.checkpoints.atomic_files import AtomicBackend
from lt_mm.engine.checkpoints.loading import load_weights_only

_LAST = 'last_checkpoint'


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


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
