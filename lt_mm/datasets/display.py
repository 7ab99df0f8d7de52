"""What people are shown of samples: images in RGB, their sources, names of classes."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from torch import Tensor


def file_of(sample: Any) -> str | None:
    """The file that the image of a sample was loaded from, if there is one.

    The channels of such an image are blue, green, red, as OpenCV loads them. Data sets
    that hold their images in memory (CIFAR) hold them as RGB.

    Args:
        sample: A data sample, or the results of a pipeline.
    """
    # Packing may leave the path out of the sample; the record has it as well.
    for holder in (sample, sample.get('gt_instances')):
        if holder is not None and holder.get('img_path') is not None:
            return holder.get('img_path')
    return None


def rgb_image(image: Any, is_bgr: bool) -> np.ndarray:
    """Converts an image of a pipeline to RGB.

    Args:
        image: (3, H, W) or (1, H, W) tensor as packed, or (H, W, 3) or (H, W) array as
            loaded; 0 to 255, or normalised.
        is_bgr: Whether its channels are blue, green, red.

    Returns:
        (H, W, 3) uint8 RGB. Normalised images are stretched to the whole range.
    """
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy().transpose(1, 2, 0)
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    if image.min(initial=0) < 0:
        low, high = image.min(), image.max()
        image = (image - low) * (255 / max(high - low, 1e-6))
    image = image.clip(0, 255).astype(np.uint8)
    return image[..., ::-1] if is_bgr else image


def source_image(sample: Any) -> np.ndarray:
    """Loads the source of a replica.

    Args:
        sample: A data sample with a record.

    Returns:
        (H, W, 3) uint8 RGB; a grey canvas of the source's size where it is in no file.
    """
    shape, path = tuple(sample.source_shape[:2]), file_of(sample)
    try:
        image = mmcv.imread(path, channel_order='rgb') if path else None
    except FileNotFoundError:
        image = None
    if image is None or image.shape[:2] != shape:
        return np.full((*shape, 3), 220, dtype=np.uint8)
    return image


def class_name(classes: Sequence[str] | None, label: int) -> str:
    """The name of a class, or its number where the data set does not name it."""
    if classes is None or label >= len(classes):
        return f'class {label}'
    return str(classes[label])
