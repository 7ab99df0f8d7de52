"""Which checkpoint a run is resumed from, and the file that names the last one."""

import logging
import os.path as osp
import zipfile
from pathlib import Path

from mmengine.logging import print_log

from lt_mm.engine.checkpoints.atomic_files import AtomicBackend
from lt_mm.engine.checkpoints.loading import load_weights_only

_LAST = 'last_checkpoint'


def write_last_checkpoint(work_dir: str, checkpoint: str | Path) -> None:
    """Writes the path of the last checkpoint where MMEngine looks for it, in one step."""
    AtomicBackend().put_text(str(checkpoint), osp.join(work_dir, _LAST))


def read_last_checkpoint(work_dir: str) -> str | None:
    """The path in ``last_checkpoint``; None if that file is missing or empty."""
    path = Path(work_dir, _LAST)
    return path.read_text().strip() or None if path.is_file() else None


def find_resumable(work_dir: str) -> str | None:
    """The checkpoint that a run is resumed from: the newest complete one.

    This is the checkpoint that ``last_checkpoint`` names, if it is complete. Otherwise it
    is the one with the most iterations among the complete ``*.pth`` files, in ``work_dir``
    and beside the named checkpoint, that hold the state of an optimizer. Files that are
    skipped are logged.

    Args:
        work_dir: Folder of a run; may be missing.

    Returns:
        Its path; None if there is no checkpoint to resume from.
    """
    named = read_last_checkpoint(work_dir)
    if named is not None and ('://' in named or _is_complete_or_logged(named)):
        return named
    folders = {Path(work_dir).resolve()}
    if named is not None:
        folders.add(Path(named).resolve().parent)
    found = [
        (num_iters, path.stat().st_mtime, path)
        for folder in folders
        for path in folder.glob('*.pth')
        if (num_iters := _num_iters(path)) is not None
    ]
    paths = (str(path) for _, _, path in sorted(found, reverse=True))
    return next(filter(_is_complete_or_logged, paths), None)


def is_complete(path: str | Path) -> bool:
    """Whether a file is a checkpoint as ``torch.save`` writes it, to the last byte."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _is_complete_or_logged(path: str) -> bool:
    complete = is_complete(path)
    if not complete:
        print_log(f'Skipped {path}: the file is not complete', 'current', logging.WARNING)
    return complete


def _num_iters(path: Path) -> int | None:
    """Iterations done in a checkpoint; None if a run cannot be resumed from it."""
    try:
        checkpoint = load_weights_only(str(path), 'cpu', mmap=True)
    except (RuntimeError, EOFError, OSError) as error:
        print_log(f'Skipped {path}: it cannot be read: {error}', 'current', logging.WARNING)
        return None
    # The best checkpoints and published ones hold no optimizer.
    return checkpoint['meta']['iter'] if 'optimizer' in checkpoint else None
