"""Files that are written whole or not at all."""

import os
import secrets
from pathlib import Path

from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.logging import print_log

ATOMIC = dict(backend='lt_mm_atomic')
_PREFIX = f'{ATOMIC["backend"]}://'


# MMEngine looks up the prefix of a checkpoint in both.
@FileClient.register_backend(ATOMIC['backend'], prefixes=ATOMIC['backend'])
@register_backend(ATOMIC['backend'], prefixes=ATOMIC['backend'])
class AtomicBackend(LocalBackend):
    """Local files that are complete or as they were before, even after a power failure.

    The bytes go to a file of a name of its own in the same folder (``<name>.<random>.partial``),
    are flushed to the disk, and then replace the file in one step. Two processes that write the
    same file do not mix their bytes. Usable wherever MMEngine takes
    ``backend_args=dict(backend='lt_mm_atomic')``, and for paths with the prefix
    ``lt_mm_atomic://``. :meth:`join_path` adds it, because a ``FlexibleRunner`` hands on the path
    of a checkpoint alone.
    """

    def join_path(self, filepath: str | Path, *filepaths: str | Path) -> str:
        """The joined path, with the prefix that has it written by this class."""
        return _PREFIX + super().join_path(filepath, *filepaths)

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file.

        Args:
            obj: Its content.
            filepath: Its path, with the prefix or without; missing folders are made.

        Raises:
            OSError: If it cannot be written, for example because the disk is full. The file is
                as it was, and what was written is removed.
        """
        path = Path(str(filepath).removeprefix(_PREFIX))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}.partial')
        try:
            with open(partial, 'xb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)
            raise
        _sync_folder(path.parent)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes a text file; arguments as in :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def remove_partial_files(folder: str | Path) -> None:
    """Removes what writers that were killed have left. No other process may write there now."""
    for name in ('*.pth*', '*.memory*', 'last_checkpoint*', '.validated*'):
        for path in Path(folder).glob(f'{name}.partial'):
            path.unlink(missing_ok=True)
            print_log(f'Removed {path}: a killed process left it', 'current')


def _sync_folder(folder: Path) -> None:
    """Flushes the names of the files in a folder to the disk."""
    if not hasattr(os, 'O_DIRECTORY'):  # Windows cannot do this and does not need it
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
