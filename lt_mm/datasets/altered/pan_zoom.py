"""The transform that shows one frame of a slow pan and zoom."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from lt_mm.core.geometry import pan_zoom_matrices, translation_matrix


class PanZoom(BaseTransform):
    """Replaces a loaded image by a frame of a pan and zoom over it, of the same size.

    Which frame it is says the data set, by :meth:`show`. Annotated instances are left out, since
    they lie elsewhere in the frame; the label of the image stays.

    Args:
        num_frames: T.
        shares: Smallest and largest side of the window, as a share of that of the image.

    Attributes:
        matrix: (3, 3) float64, from pixels of the source to those of the latest frame.
        image: The latest frame, as the image was loaded.
        shape: (height, width) of the source and of the frame.
    """

    def __init__(self, num_frames: int, shares: tuple[float, float]) -> None:
        self.num_frames = num_frames
        self.shares = shares
        self._frame = 0
        self._key: tuple[int, ...] = (0,)
        self.matrix: np.ndarray | None = None
        self.image: np.ndarray | None = None
        self.shape: tuple[int, int] | None = None

    def show(self, frame: int, *key: int) -> None:
        """Sets the number of the frame that is shown next, and the seed of its path."""
        self._frame, self._key = frame, key
        self.matrix = self.image = self.shape = None

    def transform(self, results: dict) -> dict:
        """Warps the image.

        Args:
            results: With ``img`` (H, W) or (H, W, C).
        """
        image = results['img']
        shape = (int(image.shape[0]), int(image.shape[1]))
        path = pan_zoom_matrices(
            shape, self.num_frames, self.shares, np.random.default_rng(self._key)
        )
        self.matrix, self.shape = path[self._frame], shape
        self.image = warp(image, self.matrix)
        results = dict(results, img=self.image, img_shape=shape, ori_shape=shape)
        if 'instances' in results:
            results['instances'] = []
        return results


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves the pixels of an image (H, W, ...) by a matrix (3, 3) in edge coordinates."""
    # To OpenCV, the first pixel lies at 0 and not from 0 to 1.
    moved = translation_matrix(-0.5, -0.5) @ matrix @ translation_matrix(0.5, 0.5)
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, moved[:2], (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
