"""Loading of images, and finding those that cannot be used."""

import io
import os
import os.path as osp
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from PIL import Image

from lt_mm.datasets.transforms.samples import path_of, source_shape

MAX_PIXELS = 2**29 // 3  # half a gigabyte of RGB; Pillow by itself reads no larger ones
_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
_LOADING_ERRORS = (OSError, cv2.error, AssertionError)
# What stock decoders and Pillow's readers of headers raise on files that are not what they seem.
_DECODER_ERRORS = (
    *_LOADING_ERRORS,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class BadImageError(ValueError):
    """An image cannot be read, or the transforms cannot work on it."""


def check_max_pixels(max_pixels: int | None) -> int | None:
    """The limit as given.

    Raises:
        ValueError: If it is no number of pixels, or more than Pillow reads the header of.
    """
    if max_pixels is None:
        return None
    if not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(
            f'max_pixels is {max_pixels!r}; expected a number of pixels, 1 or more, or None for '
            'no limit'
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > 2 * limit:
        raise ValueError(
            f'max_pixels is {max_pixels}, but Pillow reads the headers of images up to {2 * limit} '
            'pixels only; set PIL.Image.MAX_IMAGE_PIXELS = None in a module of custom_imports, or '
            'max_pixels=None'
        )
    return max_pixels


def load_image(load: Callable, results: dict, max_pixels: int | None = MAX_PIXELS) -> Any:
    """Runs a transform that loads an image.

    Args:
        load: The transform.
        results: With ``img_path``, and with ``height`` and ``width`` if they are annotated.
        max_pixels: A larger image is not decoded; None for no limit.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadImageError: If it cannot be read, or only a part of it, if it is too large, or if
            it has another size than was annotated.
    """
    path, data = path_of(results), None
    is_stock = isinstance(load, LoadImageFromFile) and isinstance(results.get('img_path'), str)
    unreadable = _DECODER_ERRORS if is_stock else _LOADING_ERRORS
    try:
        if is_stock:
            data = _content_unless_local(load, path)
            if max_pixels is not None:
                _check_header(path, path if data is None else io.BytesIO(data), results, max_pixels)
        output = load(results)
    except BadImageError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f'there is no image {path}') from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f'{path} is not decoded: {_first_line(error)}') from error
    except unreadable as error:
        raise BadImageError(f'{path} cannot be read as an image ({_first_line(error)})') from error
    if output is None:
        raise BadImageError(f'{path} cannot be read as an image')
    if is_stock:
        _refuse_truncated(path, data)
        _check_decoded_size(path, output)
    return output


def _content_unless_local(load: LoadImageFromFile, path: str) -> bytes | None:
    """The bytes of a file that lies elsewhere; None for one on a disk, if it is a regular file.

    As two or more replicas share a reading, the stock pipeline still reads no less.
    """
    if osp.exists(path) and not osp.isfile(path):
        raise BadImageError(
            f'{path} cannot be read as an image: it is a directory, pipe or device; expected a '
            'regular file'
        )
    if load.file_client_args is not None:
        client = fileio.FileClient.infer_client(load.file_client_args, path)
        return client.get(path)
    backend = fileio.get_file_backend(path, backend_args=load.backend_args, enable_singleton=True)
    return None if isinstance(backend, fileio.LocalBackend) else backend.get(path)


def _check_header(path: str, source: Any, results: dict, max_pixels: int) -> None:
    """Refuses an image by the size that its header claims, before memory is taken for it."""
    with Image.open(source) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(
                f'{path} is not decoded: its header claims {width} x {height} pixels, more than '
                f'max_pixels={max_pixels}'
            )
        said = results.get('width'), results.get('height')
        # By its EXIF, an image may be turned when it is decoded.
        if None not in said and said not in ((width, height), (height, width)):
            raise _other_size(path, said, (width, height))
        if image.format == 'TIFF':  # OpenCV fills what it cannot decompress with anything
            image.load()


def _check_decoded_size(path: str, results: dict) -> None:
    said, found = (results.get('width'), results.get('height')), source_shape(results)
    if None not in said and found is not None and said != found[::-1]:
        raise _other_size(path, said, found[::-1])


def _other_size(path: str, said: tuple, found: tuple[int, int]) -> BadImageError:
    swapped = (
        "; if its EXIF turns it: LoadImageFromFile(color_type='color_ignore_orientation')"
        if said == found[::-1]
        else ''
    )
    return BadImageError(
        f'{path} has {found[0]} x {found[1]} pixels, but the annotation file says {said[0]} x '
        f'{said[1]}, so its boxes may be those of another image; correct width and height{swapped}'
    )


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


def _refuse_truncated(path: str, data: bytes | None) -> None:
    """OpenCV before 4.12 fills what is missing of a JPEG with grey, without a warning.

    (Of other formats it gives no image.) Most files end with the marker of the end, and
    on a disk a look at the last two bytes is enough.

    Args:
        path: The file.
        data: Its content, if it does not lie on a disk.
    """
    if data is None:
        # It is not the end of a thumbnail: since the image was decoded, pixels follow the header.
        if _last_two_bytes(path) == _JPEG_END:
            return
        with open(path, 'rb') as file:
            data = file.read()
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
