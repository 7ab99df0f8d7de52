"""Files that are written whole or not at all."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

ATOMIC = dict(backend='lt_mm_atomic')


@register_backend(ATOMIC['backend'])
class AtomicBackend(LocalBackend):
    """Local files that are complete or as they were before, even after a power failure.

    The bytes go to ``<name>.partial`` in the same folder, are flushed to the disk, and then
    replace the file in one step. Usable wherever MMEngine takes
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
    """Flushes the names of the files in a folder to the disk."""
    if not hasattr(os, 'O_DIRECTORY'):  # Windows cannot do this and does not need it
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
