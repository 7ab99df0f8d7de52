"""Files of a downloaded data set, read by name into memory; nothing is unpacked."""

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

_DAMAGES = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


@dataclass(frozen=True)
class SourceFiles:
    """The files of a folder or of an archive.

    Attributes:
        path: The folder or the archive.
        names: Names of the files, with slashes.
        read: Gives the content of a file; raises ``ValueError`` if the archive is damaged.
        expected: What should be at the path, for messages.
    """

    path: Path
    names: set[str]
    read: Callable[[str], bytes]
    expected: str

    def root_of(self, pattern: str, what: str) -> str:
        """Where the data set lies: '' or a path with a final slash.

        Args:
            pattern: Regular expression of some file names, below the root.
            what: These names, for messages.

        Raises:
            ValueError: If there is no such file, or more than one root.
        """
        matches = (re.fullmatch(f'(?P<root>(?:.*/)?){pattern}', name) for name in self.names)
        roots = sorted({match['root'] for match in matches if match})
        if not roots:
            raise ValueError(f'found no {what} in {self.path}; expected {self.expected}')
        if len(roots) > 1:
            raise ValueError(
                f'{self.path} holds several data sets, in {roots}; give the path of one of them'
            )
        return roots[0]

    def check_present(self, names: Sequence[str], what: str) -> None:
        """Raises ``ValueError`` if one of the names, ``what`` in words, is not there."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise ValueError(
                f'{self.path} lacks {len(missing)} of {len(names)} {what}, the first is '
                f'{missing[0]}; expected {self.expected}. Unpack or download it again'
            )


@contextmanager
def open_source(
    path: Path, kind: str, patterns: Sequence[str], expected: str
) -> Iterator[SourceFiles]:
    """Opens the archive of a data set, or the folder that was unpacked from it.

    Args:
        path: The archive or the folder.
        kind: Of the archive: 'zip', or 'tar' for one that is not compressed.
        patterns: Glob patterns of the files in a folder that the data set consists of.
        expected: What should be at the path, for messages.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If there is another file or a damaged one, or if the archive has an
            entry that points out of it.
    """
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; expected {expected}')
    if path.is_dir():
        found = (file for pattern in patterns for file in path.glob(pattern))
        names = {file.relative_to(path).as_posix() for file in found if file.is_file()}
        yield SourceFiles(path, names, lambda name: (path / name).read_bytes(), expected)
        return

    if not path.is_file():
        raise ValueError(f'{path} is a pipe or a device; expected {expected}')

    def damaged(where: str = '') -> ValueError:
        return ValueError(
            f'{path} ({path.stat().st_size} bytes) is no {kind} archive, or a truncated, damaged '
            f'or compressed one{where}; expected {expected}. Download it again'
        )

    try:
        archive, names, read_entry = _OPENERS[kind](path)
    except _DAMAGES as error:
        raise damaged() from error

    def read(name: str) -> bytes:
        try:
            return read_entry(name)
        except _DAMAGES as error:
            raise damaged(f', at its entry {name!r}') from error

    with archive:
        outside = sorted(filter(_points_outside, names))
        if outside:
            raise ValueError(
                f'{path} has the entry {outside[0]!r}, which points out of the archive; '
                'expected relative names only. Use the original archive'
            )
        yield SourceFiles(path, names, read, expected)


def _open_zip(path: Path) -> tuple[Any, set[str], Callable[[str], bytes]]:
    archive = zipfile.ZipFile(path)
    return archive, set(archive.namelist()), archive.read


def _open_tar(path: Path) -> tuple[Any, set[str], Callable[[str], bytes]]:
    archive: Any = tarfile.open(path, 'r:')  # noqa: SIM115 (the caller closes it)
    members = {member.name: member for member in archive if member.isfile()}
    return archive, set(members), lambda name: archive.extractfile(members[name]).read()


_OPENERS = {'zip': _open_zip, 'tar': _open_tar}


def _points_outside(name: str) -> bool:
    """Whether an archive's entry is absolute, names a drive or climbs; with backslashes too."""
    path = PurePosixPath(name.replace('\\', '/'))
    return path.is_absolute() or '..' in path.parts or ':' in name


def decode_image(files: SourceFiles, name: str, data: bytes) -> Image.Image:
    """Decodes an image completely, so that a truncated one is noticed here.

    Raises:
        ValueError: If `data` is no image, or not all of it.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = 'JPEG' if name.endswith('.jpg') else 'PNG'
        raise ValueError(
            f'{name} in {files.path} cannot be read as an image ({error}); expected a '
            f'complete {kind}. Unpack or download it again'
        ) from error
    return image


def read_labels(files: SourceFiles, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Reads a mask whose pixels are numbers: a grey or a palette image.

    Args:
        files: Where it is.
        name: Its name there.
        shape: (H, W) of the image that it belongs to.

    Returns:
        (H, W) integers; of a palette image the indices.

    Raises:
        ValueError: If it cannot be read, has several channels or another size.
    """
    labels = np.array(decode_image(files, name, files.read(name)))
    if labels.shape != shape:
        raise ValueError(
            f'the mask {name} in {files.path} is an array of shape {labels.shape}; expected '
            f'one channel and the size of its image, {shape}. Unpack or download it again'
        )
    return labels
