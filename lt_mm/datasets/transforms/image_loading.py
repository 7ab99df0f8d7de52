"""Loading of images, and finding those that cannot be used."""

import io
import os
import os.path as osp
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from PIL import Image
from PIL.TiffImagePlugin import (
    COMPRESSION,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILEOFFSETS,
    TiffImageFile,
)

from lt_mm.datasets.transforms.samples import path_of, source_shape

MAX_PIXELS = 2**29 // 3  # half a gigabyte of RGB; Pillow by itself reads no larger ones
_JPEG_START, _JPEG_END = b'\xff\xd8', b'\xff\xd9'
# Of these formats, what Pillow does not know is damaged. It knows only some TIFF files, and
# OpenCV has formats of its own.
_STARTS = (_JPEG_START, b'\x89PNG', b'GIF8', b'BM', b'RIFF')
_TIFF_DEFLATE = (8, 32946)


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
    path, said = path_of(results), (results.get('width'), results.get('height'))
    is_stock = isinstance(load, LoadImageFromFile) and isinstance(results.get('img_path'), str)
    data = None
    with _named_errors(path):
        if is_stock:
            data = _content_unless_local(load, path)
            _check_header(load, path, data, said, max_pixels)
        output = load(results)
        if output is None:
            raise BadImageError(f'{path} cannot be read as an image')
        if is_stock:
            _refuse_truncated(path, data)
            _check_decoded_size(path, source_shape(output), said)
    return output


def load_annotations(load: Callable, results: dict, max_pixels: int | None = MAX_PIXELS) -> Any:
    """Runs a transform that loads annotations of a loaded image, perhaps with a map of classes.

    Args:
        load: The transform.
        results: With ``seg_map_path``, if there is a map.
        max_pixels: A larger map is not decoded; None for no limit.

    Raises:
        FileNotFoundError: If the map does not exist.
        BadImageError: If it cannot be used, or has another size than the image.
    """
    path, shape = results.get('seg_map_path'), source_shape(results)
    if not (getattr(load, 'with_seg', False) and isinstance(path, str) and shape is not None):
        return transform_image(load, results)
    with _named_errors(path):
        data = _content_unless_local(load, path)
        _check_header(load, path, data, (None, None), max_pixels)
        output = load(results)
        found = shape if output is None else output['gt_seg_map'].shape
        if found != shape:
            raise BadImageError(f'{path} is of shape {found}, but its image of {shape}')
    return output


@contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Turns whatever a backend or a decoder raises into an error that names the file.

    A package that is missing is not the fault of a file, and too little memory is not always.
    """
    try:
        yield
    except (BadImageError, ImportError, MemoryError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f'there is no image {path}') from error
    except Exception as error:
        raise BadImageError(
            f'{path} cannot be read as an image ({type(error).__name__}: {_first_line(error)})'
        ) from error


def _content_unless_local(load: Any, path: str) -> bytes | None:
    """The bytes of a file that lies elsewhere; None for one on a disk, if it is a regular file.

    As two or more replicas share a reading, the stock pipeline still reads no less.
    """
    if osp.exists(path) and not osp.isfile(path):
        raise BadImageError(
            f'{path} cannot be read as an image: it is a directory, pipe or device; expected a '
            'regular file'
        )
    if getattr(load, 'file_client_args', None) is not None:
        data = fileio.FileClient.infer_client(load.file_client_args, path).get(path)
    else:
        backend = fileio.get_file_backend(
            path, backend_args=load.backend_args, enable_singleton=True
        )
        if type(backend) is fileio.LocalBackend:
            return None
        data = backend.get(path)
    if data is None:  # what LMDB and Petrel give for a key that they do not have
        raise FileNotFoundError(path)
    return bytes(data)


def _check_header(
    load: Any, path: str, data: bytes | None, said: tuple, max_pixels: int | None
) -> None:
    """Refuses an image by the size that its header claims, before memory is taken for it.

    Args:
        load: The transform that is to decode it.
        path: The file.
        data: Its content, if it does not lie on a disk.
        said: (width, height) that it should have; None where that is not known.
        max_pixels: The limit; without one, headers are not read.
    """
    if max_pixels is None:
        return
    with open(path, 'rb') if data is None else io.BytesIO(data) as file:
        is_known = file.read(4).startswith(_STARTS)
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:
            raise BadImageError(
                f'{path} is not decoded, because its header claims too many pixels '
                f'({_first_line(error)})'
            ) from error
        except Exception:
            if is_known:  # OpenCV might believe in a damaged header
                raise
            return  # the decoder has the say
        width, height = image.size
        if width * height > max_pixels:
            raise BadImageError(
                f'{path} is not decoded, because its header claims {width} x {height} pixels, more '
                f'than max_pixels={max_pixels}'
            )
        # By its EXIF, an image may be turned when it is decoded.
        if None not in said and said not in ((width, height), (height, width)):
            raise _other_size(path, said, (width, height))
        if isinstance(image, TiffImageFile) and load.imdecode_backend == 'cv2':
            _refuse_damaged_tiff(image, file)


def _refuse_damaged_tiff(image: TiffImageFile, file: IO[bytes]) -> None:
    """Raises an error where OpenCV fills what it cannot decompress with anything."""
    places, sizes = (
        next((image.tag_v2[tag] for tag in tags if tag in image.tag_v2), ())
        for tags in ((STRIPOFFSETS, TILEOFFSETS), (STRIPBYTECOUNTS, TILEBYTECOUNTS))
    )
    if image.tag_v2.get(COMPRESSION) in _TIFF_DEFLATE:  # libtiff does not compare its checksums
        most = 16 * image.width * image.height  # bytes: four channels of 32 bits
        for place, size in zip(places, sizes):
            file.seek(place)
            zlib.decompressobj().decompress(file.read(size), most)
    image.load()


def _check_decoded_size(path: str, shape: tuple[int, int] | None, said: tuple) -> None:
    if None not in said and shape is not None and said != shape[::-1]:
        raise _other_size(path, said, shape[::-1])


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
