"""A small detection data set, drawn: circles, squares and triangles on a noisy background.

It is written in seconds and can be learnt from random initialisation on a CPU, and it has what real
data has: occlusion, objects cut off by the border, small objects, and images without any object.
"""

import colorsys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from lt_mm.datasets.converters.coco_json import (
    SPLITS,
    CocoSplit,
    mask_to_annotation,
    remove_stale_json,
    write_split,
)

Range = int | tuple[int, int]

GENERATOR = 'lt_mm.datasets.converters.shapes'
GENERATOR_VERSION = 1  # raise it when the same parameters give other pictures

MAX_OBJECTS = 7
EMPTY_EVERY = 20  # the second of every 20 images has no object
MIN_IMAGE_SIDE = 96
REFERENCE_SIDE = 224  # image side at which the sizes below are in pixels
SMALL_SIDE = (14, 26)
COMMON_SIDE = (32, 56, 110)  # least, most frequent, greatest
MIN_INSIDE = 0.5  # share of an object's area that must lie inside the image
MIN_VISIBLE = 0.45  # share of an object's pixels in the image that must not be occluded
ATTEMPTS = 40


class _ShapeClass(NamedTuple):
    """A regular polygon; a circle is one with many vertices."""

    name: str
    num_vertices: int
    radius: float  # of the vertices, in units of the object's nominal side
    hue: float  # usual hue, in turns


_SHAPES = (
    _ShapeClass('circle', 48, 0.5, 0.0),
    _ShapeClass('square', 4, 0.5**0.5, 1 / 3),
    _ShapeClass('triangle', 3, 0.65, 2 / 3),
)
SHAPES_CLASSES = tuple(shape.name for shape in _SHAPES)


class _Object(NamedTuple):
    """A drawn object: category id, centre and radius in pixels, number of pixels in the image."""

    category_id: int
    centre: np.ndarray
    radius: float
    num_pixels: int


def write_shapes_dataset(
    out_dir: str | Path,
    num_train: int = 120,
    num_val: int = 40,
    image_size: tuple[Range, Range] = (192, 256),
    seed: int = 0,
) -> dict[str, CocoSplit]:
    """Draw the data set: `train/*.jpg`, `val/*.jpg`, `annotations/train.json` and `val.json`.

    The n-th image of a split depends on the seed, the split, n and the image size only, so a
    smaller data set is the beginning of a larger one. Later objects occlude earlier ones: masks,
    boxes and areas describe the visible part. One image in 20, beginning with the second of each
    split, has no object. The json files are removed first and written last.

    Args:
        out_dir: Folder to write to; made if it does not exist.
        num_train: Number of training images, 2 or more.
        num_val: Number of validation images, 2 or more.
        image_size: (height, width) in pixels. Each is a number, or a (least, greatest) pair from
            which every image draws its own.
        seed: Not negative.

    Returns:
        What was written, for the splits 'train' and 'val'.

    Raises:
        ValueError: If a parameter is out of its range.
        FileExistsError: If `out_dir` holds annotations of another origin.
    """
    out_dir = Path(out_dir)
    infos = _infos(num_train, num_val, image_size, seed)
    remove_stale_json(out_dir, GENERATOR)
    return {split: _write_shapes_split(out_dir, split, infos[split]) for split in SPLITS}


def _infos(
    num_train: int, num_val: int, image_size: tuple[Range, Range], seed: int
) -> dict[str, dict[str, Any]]:
    """Check the parameters and give the `info` of each split's json, which records them."""
    for name, number in (('num_train', num_train), ('num_val', num_val)):
        if number < 2:
            raise ValueError(
                f'{name} is {number}; give 2 or more, so that a split has an image '
                'with objects and one without'
            )
    if seed < 0:
        raise ValueError(f'seed is {seed}; give a number that is not negative')
    size = _size_ranges(image_size)
    return {
        split: dict(
            description='Drawn circles, squares and triangles',
            generator=GENERATOR,
            generator_version=GENERATOR_VERSION,
            split=split,
            num_images=int(number),
            image_size=size,
            seed=int(seed),
        )
        for split, number in zip(SPLITS, (num_train, num_val))
    }


def _size_ranges(image_size: tuple[Range, Range]) -> list[list[int]]:
    """((least, greatest) height, (least, greatest) width), as lists, since json has no tuples."""
    try:
        height, width = (
            [side, side] if isinstance(side, (int, np.integer)) else list(side)
            for side in image_size
        )
        ranges = [[int(low), int(high)] for low, high in (height, width)]
    except (TypeError, ValueError):
        raise ValueError(
            f'image_size is {image_size!r}; give (height, width), each a number of '
            'pixels or a (least, greatest) pair'
        ) from None
    for low, high in ranges:
        if not MIN_IMAGE_SIDE <= low <= high:
            raise ValueError(
                f'image_size is {image_size!r}; every side has to be at least '
                f'{MIN_IMAGE_SIDE} pixels, and of a pair the smaller comes first'
            )
    return ranges


def _file_name(index: int) -> str:
    return f'{index:06d}.jpg'


def _write_shapes_split(out_dir: Path, split: str, info: dict[str, Any]) -> CocoSplit:
    """Draw and write one split."""
    image_dir = out_dir / split
    image_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(info['num_images']):
        rng = np.random.default_rng((info['seed'], SPLITS.index(split), index))
        image, objects, owner = _draw_image(rng, info['image_size'], index % EMPTY_EVERY == 1)
        _, jpeg = cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 95))
        (image_dir / _file_name(index)).write_bytes(jpeg.tobytes())
        height, width = owner.shape
        images.append(dict(id=index + 1, file_name=_file_name(index), height=height, width=width))
        annotations += [
            mask_to_annotation(owner == i, index + 1, drawn.category_id)
            for i, drawn in enumerate(objects)
        ]
    return write_split(out_dir, split, image_dir, info, images, annotations, SHAPES_CLASSES)


def _draw_image(
    rng: np.random.Generator, size: list[list[int]], empty: bool
) -> tuple[np.ndarray, list[_Object], np.ndarray]:
    """Draw one image.

    Returns:
        - image: (H, W, 3) uint8, BGR.
        - objects: The drawn objects.
        - owner: (H, W), index of the object that is visible at each pixel, -1 for the ground.
    """
    height, width = (int(rng.integers(low, high, endpoint=True)) for low, high in size)
    image = _draw_ground(rng, height, width)
    owner = np.full((height, width), -1, dtype=np.int16)
    objects: list[_Object] = []
    if not empty:
        for _ in range(rng.integers(1, MAX_OBJECTS, endpoint=True)):
            _draw_object(rng, image, owner, objects)
    image += rng.normal(0, 7, image.shape).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8), objects, owner


def _draw_ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32: blotches of weak colour, crossed by grey lines."""
    grey = rng.uniform(70, 180, (6, 8, 1)) + rng.normal(0, 10, (6, 8, 3))
    ground = cv2.resize(grey.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(3, 9)):
        start, end = rng.uniform(0, (width, height), (2, 2)).astype(int).tolist()
        cv2.line(ground, start, end, [float(rng.uniform(40, 210))] * 3, int(rng.integers(1, 4)))
    return ground


def _draw_object(
    rng: np.random.Generator, image: np.ndarray, owner: np.ndarray, objects: list[_Object]
) -> None:
    """Draw one more object, in place; none if no attempt leaves the others visible."""
    for _ in range(ATTEMPTS):
        category = int(rng.integers(len(_SHAPES)))
        shape = _SHAPES[category]
        radius = shape.radius * _sample_side(rng, owner.shape)
        centre = _sample_centre(rng, owner.shape, radius, objects)
        polygon = _polygon(shape.num_vertices, centre, radius, rng.uniform(0, 2 * np.pi))
        mask = cv2.fillPoly(np.zeros(owner.shape, np.uint8), [polygon], 1) > 0
        if _is_acceptable(mask, polygon, owner, objects):
            _paint(rng, image, mask, polygon, _sample_colour(rng, shape.hue))
            owner[mask] = len(objects)
            objects.append(_Object(category + 1, centre, radius, int(mask.sum())))
            return


def _sample_side(rng: np.random.Generator, shape: tuple[int, int]) -> float:
    """Nominal side of an object in pixels; one in five is small."""
    side = rng.uniform(*SMALL_SIDE) if rng.random() < 0.2 else rng.triangular(*COMMON_SIDE)
    return side * min(shape) / REFERENCE_SIDE


def _sample_centre(
    rng: np.random.Generator, shape: tuple[int, int], radius: float, objects: list[_Object]
) -> np.ndarray:
    """(x, y) in pixels: inside the image, across its border, or over an earlier object."""
    size = np.array(shape[::-1], dtype=float)
    manner = rng.choice(3, p=(0.55, 0.2, 0.25))
    centre = rng.uniform(radius, size - radius)
    if manner == 1:
        axis = rng.integers(2)
        centre[axis] = rng.choice((0, size[axis])) + rng.uniform(-0.2, 0.6) * radius
    elif manner == 2 and objects:
        other = objects[rng.integers(len(objects))]
        angle = rng.uniform(0, 2 * np.pi)
        distance = rng.uniform(0.5, 0.9) * (radius + other.radius)
        centre = other.centre + distance * np.array((np.cos(angle), np.sin(angle)))
    return centre


def _polygon(num_vertices: int, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """(K, 2) int32, the vertices (x, y) of a regular polygon, in pixels."""
    angles = angle + np.linspace(0, 2 * np.pi, num_vertices, endpoint=False)
    vertices = centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    return vertices.round().astype(np.int32)


def _is_acceptable(
    mask: np.ndarray, polygon: np.ndarray, owner: np.ndarray, objects: list[_Object]
) -> bool:
    """Whether enough of the new object lies inside, and enough of each earlier one stays visible.

    Otherwise objects would be annotated, or count as background, that nobody can recognise.
    """
    if mask.sum() < MIN_INSIDE * cv2.contourArea(polygon):
        return False
    left = np.bincount(owner[(owner >= 0) & ~mask], minlength=len(objects))
    return all(left[i] >= MIN_VISIBLE * drawn.num_pixels for i, drawn in enumerate(objects))


def _sample_colour(rng: np.random.Generator, hue: float) -> np.ndarray:
    """(3,) BGR in 0..255, saturated; of the class's own hue in 85 % of the cases."""
    own_hue = rng.random() < 0.85
    hue = hue + rng.uniform(-0.05, 0.05) if own_hue else rng.random()
    rgb = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.75, 1), rng.uniform(0.65, 1))
    return 255 * np.array(rgb[::-1])


def _paint(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    polygon: np.ndarray,
    colour: np.ndarray,
) -> None:
    """Fill an object, shaded from one side to the other, with a dark rim; in place."""
    height, width = mask.shape
    ys, xs = np.mgrid[:height, :width]
    slope = rng.uniform(-0.3, 0.3, 2)
    shade = 1 + slope[0] * (xs / width - 0.5) + slope[1] * (ys / height - 0.5)
    image[mask] = shade[mask][:, None] * colour
    # The rim separates an object from an overlapping one of its colour; it stays in the mask.
    rim = cv2.polylines(np.zeros(mask.shape, np.uint8), [polygon], True, 1, thickness=2) > 0
    image[rim & mask] = 0.45 * colour
