"""Loading of images, and finding those that cannot be used."""

import os
from collections.abc import Callable
from typing import Any

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio

from lt_mm.datasets.transforms.samples import path_of

_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'


class BadImageError(ValueError):
    """An image cannot be read, or the transforms cannot work on it."""


def load_image(load: Callable, results: dict) -> Any:
    """Runs a transform that loads an image.

    Args:
        load: The transform.
        results: With ``img_path``.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadImageError: If it cannot be read, or only a part of it.
    """
    path = path_of(results)
    try:
        output = load(results)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f'there is no image {path}') from error
    except (OSError, cv2.error, AssertionError) as error:
        raise BadImageError(f'{path} cannot be read as an image ({_first_line(error)})') from error
    if output is None:
        raise BadImageError(f'{path} cannot be read as an image')
    if isinstance(load, LoadImageFromFile) and isinstance(path, str):
        _refuse_truncated(load, path)
    return output


def transform_image(transform: Callable, results: dict) -> Any:
    """Runs a transform on a loaded image.

    Raises:
        BadImageError: If OpenCV refuses the image.
    """
    try:
        return transform(results)
    except cv2.error as error:
        shape = results['img'].shape if 'img' in results else 'unknown'
        raise BadImageError(
            f'{path_of(results)}, of shape {shape}, cannot be transformed by '
            f'{type(transform).__name__} ({_first_line(error)})'
        ) from error


def _refuse_truncated(load: LoadImageFromFile, path: str) -> None:
    """OpenCV before 4.12 fills what is missing of a JPEG with grey, without a warning.

    (Of other formats it gives no image.) Most files end with the marker of the end, and
    on a disk a look at the last two bytes is enough. Other files are read once more; as
    two or more replicas share a reading, the stock pipeline still reads no less.
    """
    if load.file_client_args is not None:
        data = fileio.FileClient.infer_client(load.file_client_args, path).get(path)
    else:
        backend = fileio.get_file_backend(
            path, backend_args=load.backend_args, enable_singleton=True
        )
        # It is not the end of a thumbnail: since the image was decoded, pixels follow the header.
        if isinstance(backend, fileio.LocalBackend) and _last_two_bytes(path) == _JPEG_END:
            return
        data = backend.get(path)
    if data[:2] == _JPEG_START and not _has_end(data):
        raise BadImageError(
            f'{path} is a truncated JPEG: {len(data)} bytes without the marker of the end'
        )


def _last_two_bytes(path: str) -> bytes:
    with open(path, 'rb', buffering=0) as file:
        file.seek(-2, os.SEEK_END)
        return file.read(2)


def _has_end(jpeg: bytes) -> bool:
    """Whether the marker of the end follows the pixels.

    A thumbnail in the header has such a marker too; the segments of the header, which
    tell their length, are passed over.
    """
    place = 2
    while jpeg[place : place + 1] == b'\xff' and jpeg[place + 1 : place + 2] != b'\xda':
        is_filler = jpeg[place + 1 : place + 2] == b'\xff'
        place += 1 if is_filler else 2 + int.from_bytes(jpeg[place + 2 : place + 4], 'big')
    return jpeg.find(_JPEG_END, place) >= 0


def _first_line(error: Exception) -> str:
    """What an error says, briefly; OpenCV's are long and say it in ``err``."""
    return (getattr(error, 'err', '') or str(error)).strip().partition('\n')[0][:200]
