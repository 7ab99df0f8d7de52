"""Views: 3x3 matrices from the pixels of a source image to those of a replica.

Convention, stated once for the whole package: MMDetection's *edge* coordinates.
A pixel covers a unit square, the image covers ``[0, W] x [0, H]``, a horizontal
flip maps ``x`` to ``W - x``. A view is a homogeneous matrix ``M`` that acts on
column vectors: ``replica ~ M @ source``. Views are kept in float64; chains of
transforms are composed by multiplying from the left.

What is used inside data workers, on few boxes, takes and gives numpy arrays: the
builders of matrices, :func:`move_boxes` and :func:`visible_fraction`. The other maps are
batched, differentiable torch functions.

No NaN comes out unless a point or a box that goes in holds one. A view that is no view
(entries that are not finite, or beyond 1e100) moves everything to the origin, and what
a view moves beyond the numbers of a precision is stopped at half its largest one, so
that a difference of two of them is finite. :func:`is_invertible` is False for views
that must not pair anything. Builders raise ``ValueError`` for what is not finite.
"""

import math

import numpy as np
import torch
from torch import Tensor

_PERSPECTIVE_FLOOR = 1e-9
_SMALLEST_SIDE = 1e-6  # pixels; a RoI with a smaller one counts as without area
# Products of three numbers as large as this are still finite in float64.
_LARGEST = 1e100
# Entries of an inverse: restored pixels stay far from the end of float32.
_LARGEST_INVERSE = 1e15


def translation_matrix(dx: float, dy: float) -> np.ndarray:
    """View of a shift by (dx, dy) pixels: (3, 3) float64."""
    _refuse_infinite('a shift by', dx, dy)
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], dtype=np.float64)


def scale_matrix(sx: float, sy: float) -> np.ndarray:
    """View of a resize by the factors sx (width) and sy (height): (3, 3) float64."""
    _refuse_infinite('a resize by', sx, sy)
    return np.array([[sx, 0, 0], [0, sy, 0], [0, 0, 1]], dtype=np.float64)


def _refuse_infinite(what: str, *numbers: float) -> None:
    numbers = tuple(map(float, numbers))
    if not all(abs(number) <= _LARGEST for number in numbers):
        raise ValueError(
            f'{what} {numbers} is no view; expected finite numbers. '
            'Check the transform that drew them'
        )


def flip_matrix(shape: tuple[int, int], direction: str) -> np.ndarray:
    """View of a flip inside an image.

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
    """View of a rotation about a point.

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
    """Views of a resize about points that stay where they are.

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
    """Whether views take axis-aligned boxes to axis-aligned boxes.

    Only for such views is a box restored exactly by the inverse matrix. A rotation
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
    # Each row by itself: a view may squeeze one axis and stretch the other.
    small = linear <= tolerance * linear.amax(dim=-1, keepdim=True)
    straight = small[..., 0, 1] & small[..., 1, 0]
    swapped = small[..., 0, 0] & small[..., 1, 1]
    flat = (perspective <= tolerance * matrices[..., 2, 2:].abs()).all(dim=-1)
    finite = matrices.isfinite().flatten(-2).all(dim=-1)
    return (straight | swapped) & flat & finite


def map_points(points: Tensor, matrices: Tensor) -> Tensor:
    """Moves points by views.

    A point on the horizon of a perspective view has no image; it is moved very far
    away, never to NaN. A point that is not a number stays so.

    Args:
        points: (..., k, 2), x and y in pixels; receives gradient.
        matrices: (..., 3, 3), one view for each set of k points.

    Returns:
        (..., k, 2) in the dtype of ``points``; computed in float64. Beyond half the
        largest number of that dtype, positions stop there, without gradient.
    """
    views = _where_finite(matrices.double())
    wide = points.double().clamp(-_LARGEST, _LARGEST)
    moved = wide @ views[..., :2, :2].mT + views[..., None, :2, 2]
    depth = wide @ views[..., 2, :2, None] + views[..., 2, 2, None, None]
    far = torch.where(depth < 0, -_PERSPECTIVE_FLOOR, _PERSPECTIVE_FLOOR).to(depth)
    depth = torch.where(depth.abs() < _PERSPECTIVE_FLOOR, far, depth)
    limit = torch.finfo(points.dtype).max / 2
    return (moved / depth).clamp(-limit, limit).to(points.dtype)


def _where_finite(views: Tensor) -> Tensor:
    """The views; in the place of those that are none, one that moves all to (0, 0)."""
    usable = (views.abs() <= _LARGEST).flatten(-2).all(dim=-1)[..., None, None]
    return torch.where(usable, views, _collapsing(views))


def _collapsing(views: Tensor) -> Tensor:
    """Zeros with a last entry of one, as many as there are views."""
    collapsed = torch.zeros_like(views)
    collapsed[..., 2, 2] = 1
    return collapsed


def map_boxes(boxes_xyxy: Tensor, matrices: Tensor) -> Tensor:
    """Moves boxes by views: the axis-aligned hull of the four moved corners.

    Args:
        boxes_xyxy: (..., 4), pixels of the image before; receives gradient.
        matrices: (..., 3, 3), one view a box.

    Returns:
        (..., 4) xyxy in pixels of the image after; x1 <= x2 and y1 <= y2, also
        where a flip swaps the corners.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=-1)
    corners = torch.stack([x1, y1, x2, y1, x1, y2, x2, y2], dim=-1)
    moved = map_points(corners.unflatten(-1, (4, 2)), matrices)
    return torch.cat([moved.amin(dim=-2), moved.amax(dim=-2)], dim=-1)


def invert(matrices: Tensor) -> Tensor:
    """Inverse views, in float64.

    Args:
        matrices: (..., 3, 3).

    Returns:
        (..., 3, 3) float64. A view without an inverse (an image squeezed to a line)
        gives a matrix of zeros with a last entry of one, so that no NaN appears;
        test with :func:`is_invertible` what such a view may be used for.
    """
    adjugate, det = _adjugate_and_determinant(matrices.double())
    invertible = is_invertible(matrices)[..., None, None]
    inverse = adjugate / torch.where(invertible, det[..., None, None], 1)
    return torch.where(invertible, inverse, _collapsing(adjugate))


def is_invertible(matrices: Tensor) -> Tensor:
    """Whether views can be inverted: (..., 3, 3) to (...,) bool.

    Not where the determinant is below 1e-12 (an image squeezed to a line), not where it
    cannot be told from the rounding of its own terms, and not where an entry of the
    view or of its inverse is not finite or absurd.
    """
    wide = matrices.double()
    adjugate, det = _adjugate_and_determinant(wide)
    first, second, third = wide.abs().unbind(dim=-2)
    terms = first * (
        second.roll(-1, -1) * third.roll(-2, -1) + second.roll(-2, -1) * third.roll(-1, -1)
    )
    size = det.abs()
    usable = (wide.abs() <= _LARGEST).flatten(-2).all(dim=-1)
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

    Written out: a factorisation loses rows of very different size, raises for
    singular views and makes the device wait.
    """
    first, second, third = wide.unbind(dim=-2)
    columns = [
        torch.linalg.cross(second, third),
        torch.linalg.cross(third, first),
        torch.linalg.cross(first, second),
    ]
    return torch.stack(columns, dim=-1), (first * columns[0]).sum(dim=-1)


def points_to_source(points: Tensor, matrices: Tensor) -> Tensor:
    """Points of replicas in the frame of their source image; see :func:`map_points`."""
    return map_points(points, invert(matrices))


def points_to_replica(points: Tensor, matrices: Tensor) -> Tensor:
    """Points of a source image in the frame of replicas; see :func:`map_points`."""
    return map_points(points, matrices)


def boxes_to_source(boxes_xyxy: Tensor, matrices: Tensor) -> Tensor:
    """psi^-1 for boxes: restores boxes of replicas to their source image.

    Args:
        boxes_xyxy: (..., 4), pixels of the replicas; receives gradient.
        matrices: (..., 3, 3), views from source to replica, one a box.

    Returns:
        (..., 4) xyxy, pixels of the source images. Exact where
        :func:`is_axis_aligned`, the hull of the restored corners elsewhere.
    """
    return map_boxes(boxes_xyxy, invert(matrices))


def boxes_to_replica(boxes_xyxy: Tensor, matrices: Tensor) -> Tensor:
    """Psi for boxes: moves boxes of source images to replicas; see :func:`map_boxes`."""
    return map_boxes(boxes_xyxy, matrices)


def masks_to_source(
    mask_logits: Tensor, rois_xyxy: Tensor, matrices: Tensor, regions_xyxy: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """psi^-1 for masks: resamples them on a canonical grid of the source instance.

    Each cell centre of a ``size`` x ``size`` grid over the instance's region in the
    source image is moved into the replica by the instance's own view, and the mask is
    read there by bilinear interpolation. No inverse is taken, so rotated, sheared and
    mirrored replicas are all exact up to interpolation.

    Args:
        mask_logits: (N, h, w), unnormalised, on a regular grid over the RoI (cell
            centres at (i + 0.5) / w of its side, as RoIAlign has it); receives
            gradient.
        rois_xyxy: (N, 4), the RoI of each mask; pixels of its replica.
        matrices: (N, 3, 3), views from source to replica.
        regions_xyxy: (N, 4), region of each instance; pixels of the source image.
            Equal for the masks that are to be compared.
        size: Cells of the grid along each side.

    Returns:
        (N, size, size) logits on the grid, in float32 or wider, and (N, size, size)
        bool: whether the cell lies inside the RoI, so that the mask says something
        about it. A RoI without area, or that is not a number, has no inside.
    """
    steps = (torch.arange(size, device=rois_xyxy.device, dtype=torch.float64) + 0.5) / size
    rows, columns = torch.meshgrid(steps, steps, indexing='ij')
    unit = torch.stack([columns, rows], dim=-1).reshape(1, -1, 2)
    regions, rois = regions_xyxy.detach().double(), rois_xyxy.detach().double()
    cells = regions[:, None, :2] + unit * (regions[:, None, 2:] - regions[:, None, :2])
    sides = rois[:, None, 2:] - rois[:, None, :2]
    places = (map_points(cells, matrices) - rois[:, None, :2]) / sides.clamp(min=_SMALLEST_SIDE)
    # NaN is outside too; grid_sample's backward reads beyond its memory at it.
    places = places.nan_to_num(nan=-1.0)
    inside = ((places >= 0) & (places <= 1) & (sides >= _SMALLEST_SIDE)).all(dim=-1)
    # In half precision a place would be off by parts of a mask's cell.
    wide = mask_logits if mask_logits.dtype == torch.float64 else mask_logits.float()
    grid = (2 * places.clamp(0, 1) - 1).to(wide)
    values = torch.nn.functional.grid_sample(
        wide[:, None], grid.view(-1, size, size, 2), padding_mode='border', align_corners=False
    )
    return values[:, 0], inside.view(-1, size, size)


def side_positions_to_source(
    centers: Tensor, distances: Tensor, matrices: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the sides of boxes may lie, in the source image.

    A head that predicts a distribution of the distance from a point to each side of
    the box says, for K distances, how likely the side is there.

    Args:
        centers: (N, 2), the points; pixels of the replicas.
        distances: (N, K) from the point to the side, ascending, K > 1; pixels of the
            replicas.
        matrices: (N, 3, 3), views from source to replica; axis-aligned
            (:func:`is_axis_aligned`), others give positions without meaning.

    Returns:
        (N, 4, K) float64: for the left, top, right and bottom side in the source image
        its x (left, right) or y (top, bottom) at each distance. And (N, 4) int64: which
        side of the replica it is there, in the same order; a horizontal flip makes the
        left side the right one.
    """
    axes = torch.eye(2, dtype=torch.float64, device=centers.device)
    directions = torch.cat([-axes, axes])
    places = (
        centers.double()[:, None, None] + distances.double()[:, None, :, None] * directions[:, None]
    )
    sources = points_to_source(places.flatten(1, 2), matrices).unflatten(1, (4, -1))
    away = sources[:, :, -1] - sources[:, :, 0]  # (N, 4, 2), outwards from the point
    x, y = away.unbind(dim=-1)
    sides = torch.stack([x.argmin(1), y.argmin(1), x.argmax(1), y.argmax(1)], dim=1)
    picked = sources.gather(1, sides[:, :, None, None].expand(-1, -1, *sources.shape[2:]))
    axis = torch.arange(4, device=picked.device) % 2
    positions = picked.gather(3, axis.view(1, 4, 1, 1).expand(len(picked), -1, picked.shape[2], 1))
    return positions[..., 0], sides


def move_boxes(boxes_xyxy: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """:func:`boxes_to_replica` for data workers, many times faster for few boxes.

    Args:
        boxes_xyxy: (n, 4) float64, pixels of the source images.
        matrices: (n, 3, 3) float64, views from source to replica, one a box.

    Returns:
        (n, 4) float64, pixels of the replicas.
    """
    corners = np.ones((len(boxes_xyxy), 4, 3))
    corners[:, :, :2] = boxes_xyxy[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]
    usable = (np.abs(matrices) <= _LARGEST).all(axis=(1, 2))
    if not usable.all():
        matrices = np.where(usable[:, None, None], matrices, np.diag([0.0, 0, 1]))
    moved = corners.clip(-_LARGEST, _LARGEST) @ matrices.transpose(0, 2, 1)
    places, depth = moved[:, :, :2], moved[:, :, 2:]
    far = np.where(depth < 0, -_PERSPECTIVE_FLOOR, _PERSPECTIVE_FLOOR)
    places = places / np.where(np.abs(depth) < _PERSPECTIVE_FLOOR, far, depth)
    return np.concatenate([places.min(axis=1), places.max(axis=1)], axis=1)


def visible_fraction(
    boxes_xyxy: np.ndarray, whole_xyxy: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """How much of moved boxes is left inside an image.

    Args:
        boxes_xyxy: (n, 4), the boxes as they are now, possibly clipped; pixels.
        whole_xyxy: (n, 4) float64, the same boxes moved without clipping; pixels.
        shape: (height, width) of the image.

    Returns:
        (n,) float32 in [0, 1]: area of the box inside the image and inside the whole
        box / area of the whole moved box; 0 for a box without area. (A box that was
        clipped and then rotated can lie outside the whole: nothing of it is seen, as
        of a box that is not a number.)
    """
    height, width = shape[:2]
    whole = whole_xyxy.clip(-_LARGEST, _LARGEST)
    low = np.maximum(np.maximum(boxes_xyxy[:, :2], whole[:, :2]), 0)
    high = np.minimum(np.minimum(boxes_xyxy[:, 2:], whole[:, 2:]), (width, height))
    seen, area = _areas(low, high), _areas(whole[:, :2], whole[:, 2:])
    fraction = np.divide(seen, area, out=np.zeros_like(seen), where=area > 0)
    return np.fmin(np.fmax(fraction, 0), 1).astype(np.float32)


def _areas(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    sides = np.maximum(high - low, 0)
    return sides[:, 0] * sides[:, 1]
