"""Windows that move slowly over an image, as a camera does."""

import numpy as np


def pan_zoom_matrices(
    shape: tuple[int, int],
    num_frames: int,
    shares: tuple[float, float],
    generator: np.random.Generator,
) -> np.ndarray:
    """The matrices of the frames of a slow pan and zoom.

    A window with the proportions of the image moves from one random place to another and changes
    its size on the way, slowly at both ends. It never leaves the image, and is enlarged to the
    size of the image.

    Args:
        shape: (height, width) of the image.
        num_frames: T, 2 or more.
        shares: Smallest and largest side of the window, as a share of that of the image.
        generator: Draws the two windows.

    Returns:
        (T, 3, 3) float64, from pixels of the image to those of each frame.
    """
    sizes = generator.uniform(*shares, size=2)
    # Opposite ends, so that the window does move.
    places = generator.uniform(0, 0.3, size=(2, 2))
    places[1] = 1 - places[1]
    is_mirrored = generator.random(2) < 0.5
    places = np.where(is_mirrored, 1 - places, places)
    progress = (1 - np.cos(np.linspace(0, np.pi, num_frames))) / 2
    size = sizes[0] * (sizes[1] / sizes[0]) ** progress
    place = places[0] + progress[:, None] * (places[1] - places[0])
    low = place * (1 - size)[:, None] * np.array(shape[::-1])
    matrices = np.zeros((num_frames, 3, 3))
    matrices[:, [0, 1], [0, 1]] = (1 / size)[:, None]
    matrices[:, :2, 2] = -low / size[:, None]
    matrices[:, 2, 2] = 1
    return matrices
