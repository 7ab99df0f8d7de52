"""Points and boxes, moved by matrices."""

import numpy as np
import torch
from torch import Tensor

from lt_mm.core.geometry.matrices import LARGEST_ENTRY, collapse_unusable, invert

_PERSPECTIVE_FLOOR = 1e-9
# A side may differ by so many pixels from where it should be without having been cut: stock
# transforms compute in float32, and masks know whole pixels, of the source and of the replica.
ROUNDING, ROUNDING_OF_MASKS = 0.01, 2.0
# A predicted side lies at the border if it is no further away than this part of the box's side.
_BORDER_MARGIN = 0.05


def map_points(points: Tensor, matrices: Tensor) -> Tensor:
    """Moves points by matrices.

    A point on the horizon of a perspective has no image; it is moved very far away, never
    to NaN. A point that is NaN stays NaN.

    Args:
        points: (..., k, 2), x and y in pixels; receives gradient.
        matrices: (..., 3, 3), one for each set of k points.

    Returns:
        (..., k, 2) in the dtype of ``points``; computed in float64. Beyond half the
        largest number of that dtype, positions stop there, without gradient.
    """
    matrices = collapse_unusable(matrices.double())
    wide = points.double().clamp(-LARGEST_ENTRY, LARGEST_ENTRY)
    moved = wide @ matrices[..., :2, :2].mT + matrices[..., None, :2, 2]
    depth = wide @ matrices[..., 2, :2, None] + matrices[..., 2, 2, None, None]
    far = torch.where(depth < 0, -_PERSPECTIVE_FLOOR, _PERSPECTIVE_FLOOR).to(depth)
    depth = torch.where(depth.abs() < _PERSPECTIVE_FLOOR, far, depth)
    limit = torch.finfo(points.dtype).max / 2
    return (moved / depth).clamp(-limit, limit).to(points.dtype)


def map_boxes(boxes_xyxy: Tensor, matrices: Tensor) -> Tensor:
    """Moves boxes by matrices: the axis-aligned hull of the four moved corners.

    Args:
        boxes_xyxy: (..., 4), pixels of the image before; receives gradient.
        matrices: (..., 3, 3), one a box.

    Returns:
        (..., 4) xyxy in pixels of the image after; x1 <= x2 and y1 <= y2, also
        where a flip swaps the corners.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=-1)
    corners = torch.stack([x1, y1, x2, y1, x1, y2, x2, y2], dim=-1)
    moved = map_points(corners.unflatten(-1, (4, 2)), matrices)
    return torch.cat([moved.amin(dim=-2), moved.amax(dim=-2)], dim=-1)


def points_to_source(points: Tensor, matrices: Tensor) -> Tensor:
    """Points of replicas in the frame of their source image; see :func:`map_points`."""
    return map_points(points, invert(matrices))


def boxes_to_source(boxes_xyxy: Tensor, matrices: Tensor) -> Tensor:
    """psi^-1 for boxes: restores boxes of replicas to their source image.

    Psi itself, from the source image to replicas, is :func:`map_boxes`.

    Args:
        boxes_xyxy: (..., 4), pixels of the replicas; receives gradient.
        matrices: (..., 3, 3), from source to replica, one a box.

    Returns:
        (..., 4) xyxy, pixels of the source images. Exact where
        :func:`is_axis_aligned`, the hull of the restored corners elsewhere.
    """
    return map_boxes(boxes_xyxy, invert(matrices))


def side_positions_to_source(
    centers: Tensor, distances: Tensor, matrices: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the sides of boxes may lie, in the source image.

    For heads that predict a distribution of the distance from a point to each side of the
    box: how likely each of K distances is.

    Args:
        centers: (N, 2), the points; pixels of the replicas.
        distances: (N, K) from the point to the side, ascending, K > 1; pixels of the replicas.
        matrices: (N, 3, 3), from source to replica; axis-aligned
            (:func:`is_axis_aligned`), others give positions without meaning.

    Returns:
        (N, 4, K) float64: for the left, top, right and bottom side in the source image its x (left,
        right) or y (top, bottom) at each distance; and (N, 4) int64: which side of the replica it
        is, in the same order. A horizontal flip makes the left side the right one.
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
    """:func:`map_boxes` for data workers, many times faster for few boxes.

    Args:
        boxes_xyxy: (n, 4) float64, pixels of the source images.
        matrices: (n, 3, 3) float64, from source to replica, one a box.

    Returns:
        (n, 4) float64, pixels of the replicas.
    """
    corners = np.ones((len(boxes_xyxy), 4, 3))
    corners[:, :, :2] = boxes_xyxy[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]
    usable = (np.abs(matrices) <= LARGEST_ENTRY).all(axis=(1, 2))
    if not usable.all():
        matrices = np.where(usable[:, None, None], matrices, np.diag([0.0, 0, 1]))
    moved = corners.clip(-LARGEST_ENTRY, LARGEST_ENTRY) @ matrices.transpose(0, 2, 1)
    places, depth = moved[:, :, :2], moved[:, :, 2:]
    far = np.where(depth < 0, -_PERSPECTIVE_FLOOR, _PERSPECTIVE_FLOOR)
    places = places / np.where(np.abs(depth) < _PERSPECTIVE_FLOOR, far, depth)
    return np.concatenate([places.min(axis=1), places.max(axis=1)], axis=1)


def visible_fraction(
    boxes_xyxy: np.ndarray, whole_xyxy: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """How much of each moved box is left inside an image.

    Args:
        boxes_xyxy: (n, 4), the boxes as they are now, possibly clipped; pixels.
        whole_xyxy: (n, 4) float64, the same boxes moved without clipping; pixels.
        shape: (height, width) of the image.

    Returns:
        (n,) float32 in [0, 1]: area of the box inside the image and inside the whole box / area of
        the whole moved box; 0 for a box without area or with NaN. (A box that was clipped and then
        rotated can lie outside the whole: it counts as not seen.)
    """
    height, width = shape[:2]
    whole = whole_xyxy.clip(-LARGEST_ENTRY, LARGEST_ENTRY)
    low = np.maximum(np.maximum(boxes_xyxy[:, :2], whole[:, :2]), 0)
    high = np.minimum(np.minimum(boxes_xyxy[:, 2:], whole[:, 2:]), (width, height))
    seen, area = _areas(low, high), _areas(whole[:, :2], whole[:, 2:])
    fraction = np.divide(seen, area, out=np.zeros_like(seen), where=area > 0)
    return np.fmin(np.fmax(fraction, 0), 1).astype(np.float32)


def cut_sides(
    boxes_xyxy: np.ndarray, whole_xyxy: np.ndarray, matrices: np.ndarray, from_masks: np.ndarray
) -> np.ndarray:
    """Which sides of boxes a border, a crop or a paste cut off.

    A side was cut where it is not where the matrix takes it, up to ``ROUNDING`` or, for boxes
    made from masks, ``ROUNDING_OF_MASKS``; in pixels of the replica, or of the source where
    these are larger.

    Args:
        boxes_xyxy: (n, 4), the boxes as they are now; pixels of the replica.
        whole_xyxy: (n, 4) float64, the annotations moved without clipping; pixels of the replica.
        matrices: (n, 3, 3) float64, from source to replica; what is found for one that is not
            axis-aligned (:func:`is_axis_aligned`) has no meaning.
        from_masks: (n,) bool, whether a box was made from a mask.

    Returns:
        (n, 4) bool, for the left, top, right and bottom side as they lie in the source.
    """
    linear = matrices[:, :2, :2]
    scales = np.tile(np.abs(linear).sum(axis=2), 2)
    rounding = np.where(from_masks, ROUNDING_OF_MASKS, ROUNDING)[:, None]
    # NaN counts as cut.
    cut = ~(np.abs(boxes_xyxy - whole_xyxy) <= rounding * np.maximum(scales, 1))
    # The axis of the replica, 0 or 1, along which each axis of the source lies.
    turned = np.abs(linear[:, 0, 1]) > np.abs(linear[:, 0, 0])
    axes = np.stack([turned, ~turned], axis=1).astype(np.int64)
    mirrored = np.take_along_axis(linear, axes[:, None], axis=1)[:, 0] < 0
    low = axes + 2 * mirrored
    return np.take_along_axis(cut, np.concatenate([low, (low + 2) % 4], axis=1), axis=1)


def sides_at_border(
    restored_xyxy: Tensor, matrices: Tensor, sizes: Tensor, source_sizes: Tensor
) -> Tensor:
    """Which sides of predicted boxes end where their replica does, in the midst of its source.

    What an object shows there was cut off in all likelihood, and the side says where the border
    is. A border of the replica that is one of the source as well cuts nothing off.

    Args:
        restored_xyxy: (N, 4), pixels of the source images.
        matrices: (N, 3, 3), from source to replica, axis-aligned.
        sizes: (N, 2), (width, height) of the replicas; pixels.
        source_sizes: (N, 2), likewise of the source images.

    Returns:
        (N, 4) bool, for the left, top, right and bottom side as they lie in the source.
    """
    restored = restored_xyxy.detach().double()
    borders = boxes_to_source(torch.cat([torch.zeros_like(sizes), sizes], dim=1), matrices)
    margin = _BORDER_MARGIN * (restored[:, 2:] - restored[:, :2])
    reaches = [
        restored[:, :2] <= borders[:, :2] + margin,
        restored[:, 2:] >= borders[:, 2:] - margin,
    ]
    # A pixel less: sizes of resized images are whole numbers.
    cuts = [borders[:, :2] > 1, borders[:, 2:] < source_sizes - 1]
    return torch.cat(reaches, dim=1) & torch.cat(cuts, dim=1)


def _areas(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    sides = np.maximum(high - low, 0)
    return sides[:, 0] * sides[:, 1]
