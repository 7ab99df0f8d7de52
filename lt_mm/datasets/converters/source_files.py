"""Files of a downloaded data set, read by name into memory; nothing is unpacked."""

import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image


class SourceFiles(Protocol):
    """A folder or an archive.

    Attributes:
        path: Where it lies.
        names: Names of its files, with slashes.
    """

    path: Path
    names: set[str]

    def read(self, name: str) -> bytes:
        """The content of one of `names`."""


class FolderFiles:
    """Files of an unpacked archive, by names relative to the folder.

    Args:
        path: The folder.
        patterns: Glob patterns of the files that the data set consists of.
    """

    def __init__(self, path: Path, patterns: Sequence[str]) -> None:
        self.path = path
        self.names = {
            file.relative_to(path).as_posix() for pattern in patterns for file in path.glob(pattern)
        }

    def __enter__(self) -> 'FolderFiles':
        return self

    def __exit__(self, *exc_info: Any) -> None:
        pass

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


def points_outside(name: str) -> bool:
    """Whether an archive's entry is absolute, names a drive or climbs.

    Backslashes count as slashes.
    """
    path = PurePosixPath(name.replace('\\', '/'))
    return path.is_absolute() or '..' in path.parts or ':' in name


def decode_image(files: SourceFiles, name: str, data: bytes) -> Image.Image:
    """Decode an image completely, so that a truncated one is noticed here.

    Raises:
        ValueError: If `data` is no image, or not all of it.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError) as error:  # Pillow's errors for what it cannot read
        kind = 'JPEG' if name.endswith('.jpg') else 'PNG'
        raise ValueError(
            f'{name} in {files.path} cannot be read as an image ({error}); expected a '
            f'complete {kind}. Unpack or download it again'
        ) from error
    return image


def read_labels(files: SourceFiles, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Read a mask whose pixels are numbers: a grey or a palette image.

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
            f'the mask {name} in {files.path} is an array of shape {labels.shape}; '
            f'expected one channel and the size of its image, {shape}. Unpack or download '
            'it again'
        )
    return labels
