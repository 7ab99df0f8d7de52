"""The transform that corrupts a loaded image."""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
from mmcv.transforms import BaseTransform

from lt_mm.datasets.display import file_of

# They draw from generators of their own, the others from that of numpy.
_WITH_GENERATORS = ('glass_blur', 'impulse_noise')


def is_installed() -> bool:
    """Whether the package of the corruptions is there."""
    return find_spec('imagecorruptions') is not None


class Corruption(BaseTransform):
    """Corrupts an image by the package ``imagecorruptions``, in RGB.

    (MMDetection's ``Corrupt`` is not in all versions, and takes BGR for RGB.)

    Attributes:
        kind: Name of the corruption that is applied next; None for none.
        severity: From 1 to 5.
    """

    def __init__(self) -> None:
        self.kind: str | None = None
        self.severity = 1

    def transform(self, results: dict) -> dict:
        """Corrupts the image.

        Args:
            results: With ``img`` (H, W, 3) or (H, W, 1), 0 to 255; BGR if it has a path.
        """
        if self.kind is None:
            return results
        order = -1 if file_of(results) is not None else 1
        image = np.ascontiguousarray(results['img'][..., ::order].astype(np.uint8))
        own = self.kind in _WITH_GENERATORS
        seed = dict(seed=int(np.random.randint(2**31))) if own else {}
        corrupt = import_module('imagecorruptions').corrupt  # an extra, without types
        corrupted = corrupt(image, severity=self.severity, corruption_name=self.kind, **seed)
        corrupted = corrupted[..., : image.shape[2]]  # a grey image comes back in three channels
        return dict(results, img=np.ascontiguousarray(corrupted[..., ::order]))
