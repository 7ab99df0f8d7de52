"""Matrices: built, inverted, and asked what they may be used for."""

import math

import numpy as np
import torch
from torch import Tensor

# Products of three numbers as large as this are still finite in float64.
LARGEST_ENTRY = 1e100
# Entries of an inverse: restored pixels stay far from the end of float32.
_LARGEST_INVERSE = 1e15


def translation_matrix(dx: float, dy: float) -> np.ndarray:
    """The matrix of a shift by (dx, dy) pixels: (3, 3) float64."""
    _refuse_infinite('a shift by', dx, dy)
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], dtype=np.float64)


def scale_matrix(sx: float, sy: float) -> np.ndarray:
    """The matrix of a resize by the factors sx (width) and sy (height): (3, 3) float64."""
    _refuse_infinite('a resize by', sx, sy)
    return np.array([[sx, 0, 0], [0, sy, 0], [0, 0, 1]], dtype=np.float64)


def _refuse_infinite(what: str, *numbers: float) -> None:
    numbers = tuple(map(float, numbers))
    if not all(abs(number) <= LARGEST_ENTRY for number in numbers):
        raise ValueError(
            f'{what} {numbers} gives no matrix; expected finite numbers. '
            'Check the transform that drew them'
        )


def flip_matrix(shape: tuple[int, int], direction: str) -> np.ndarray:
    """The matrix of a flip inside an image.

    Args:
        shape: (height, width) of the image in pixels.
        direction: 'horizontal', 'vertical' or 'diagonal' (both).

    Returns:
        (3, 3) float64; 'horizontal' maps x to W - x.

    Raises:
        ValueError: For another direction.
    """
    if direction not in ('horizontal', 'vertical', 'diagonal'):
        raise ValueError(
            f"flip direction is {direction!r}; expected 'horizontal', 'vertical' or 'diagonal'"
        )
    height, width = shape[:2]
    _refuse_infinite('a flip in an image of', height, width)
    matrix = np.eye(3)
    if direction != 'vertical':
        matrix[0, 0], matrix[0, 2] = -1, width
    if direction != 'horizontal':
        matrix[1, 1], matrix[1, 2] = -1, height
    return matrix


def rotation_matrix(center: tuple[float, float], angle: float) -> np.ndarray:
    """The matrix of a rotation about a point.

    Args:
        center: (x, y) in pixels.
        angle: Degrees, positive clockwise on the screen (y points down).

    Returns:
        (3, 3) float64.
    """
    _refuse_infinite('a rotation by x, y, angle', *center, angle)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return translation_matrix(*center) @ turn @ translation_matrix(-center[0], -center[1])


def scale_about_matrices(centers: np.ndarray, sx: float, sy: float) -> np.ndarray:
    """The matrices of a resize about points that stay where they are.

    Args:
        centers: (n, 2), x and y in pixels.
        sx: Factor of the width.
        sy: Factor of the height.

    Returns:
        (n, 3, 3) float64.
    """
    _refuse_infinite('a resize about', np.abs(centers).max(initial=0))
    matrices = np.tile(scale_matrix(sx, sy), (len(centers), 1, 1))
    matrices[:, :2, 2] = centers * (1 - np.array([sx, sy]))
    return matrices


def is_axis_aligned(matrices: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Whether matrices take axis-aligned boxes to axis-aligned boxes.

    Only by such a matrix is a box restored exactly by the inverse matrix. A rotation
    (other than by a multiple of 90 degrees), a shear or a perspective is not: the
    axis-aligned hull of the hull is larger than the box.

    Args:
        matrices: (..., 3, 3).
        tolerance: Largest entry, relative to the scale of its row, that counts as
            zero; perspective entries are compared per 1000 pixels.

    Returns:
        (...,) bool.
    """
    linear = matrices[..., :2, :2].abs()
    perspective = matrices[..., 2, :2].abs() * 1000
    # Each row by itself: a matrix may squeeze one axis and stretch the other.
    small = linear <= tolerance * linear.amax(dim=-1, keepdim=True)
    straight = small[..., 0, 1] & small[..., 1, 0]
    swapped = small[..., 0, 0] & small[..., 1, 1]
    flat = (perspective <= tolerance * matrices[..., 2, 2:].abs()).all(dim=-1)
    finite = matrices.isfinite().flatten(-2).all(dim=-1)
    return (straight | swapped) & flat & finite


def collapse_unusable(matrices: Tensor) -> Tensor:
    """Replaces matrices that cannot be used by one that moves everything to (0, 0)."""
    usable = (matrices.abs() <= LARGEST_ENTRY).flatten(-2).all(dim=-1)[..., None, None]
    return torch.where(usable, matrices, _collapsing(matrices))


def _collapsing(matrices: Tensor) -> Tensor:
    """Zeros with a last entry of one, as many as there are matrices."""
    collapsed = torch.zeros_like(matrices)
    collapsed[..., 2, 2] = 1
    return collapsed


def invert(matrices: Tensor) -> Tensor:
    """Inverse matrices, in float64.

    Args:
        matrices: (..., 3, 3).

    Returns:
        (..., 3, 3) float64. Where there is no inverse (an image squeezed to a line),
        zeros with a last entry of one, so that no NaN appears; test with
        :func:`is_invertible` which matrices may be used.
    """
    adjugate, det = _adjugate_and_determinant(matrices.double())
    invertible = is_invertible(matrices)[..., None, None]
    inverse = adjugate / torch.where(invertible, det[..., None, None], 1)
    return torch.where(invertible, inverse, _collapsing(adjugate))


def is_invertible(matrices: Tensor) -> Tensor:
    """Whether matrices can be inverted: (..., 3, 3) to (...,) bool.

    False where the determinant is below 1e-12 (an image squeezed to a line) or cannot be
    told from the rounding of its own terms, and where an entry of the matrix or of its
    inverse is not finite or absurdly large.
    """
    wide = matrices.double()
    adjugate, det = _adjugate_and_determinant(wide)
    first, second, third = wide.abs().unbind(dim=-2)
    terms = first * (
        second.roll(-1, -1) * third.roll(-2, -1) + second.roll(-2, -1) * third.roll(-1, -1)
    )
    size = det.abs()
    usable = (wide.abs() <= LARGEST_ENTRY).flatten(-2).all(dim=-1)
    bounded = (adjugate.abs() <= _LARGEST_INVERSE * size[..., None, None]).flatten(-2)
    return (
        usable
        & bounded.all(dim=-1)
        & size.isfinite()
        & (size > 1e-12)
        & (size > 1e-14 * terms.sum(dim=-1))
    )


def _adjugate_and_determinant(wide: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3, 3) and (...,), so that the inverse is their quotient.

    Written out, since a factorisation loses rows of very different size, raises for
    singular matrices and makes the host wait for the device.
    """
    first, second, third = wide.unbind(dim=-2)
    columns = [
        torch.linalg.cross(second, third),
        torch.linalg.cross(third, first),
        torch.linalg.cross(first, second),
    ]
    return torch.stack(columns, dim=-1), (first * columns[0]).sum(dim=-1)
