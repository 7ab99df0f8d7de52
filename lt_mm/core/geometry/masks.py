"""Masks, resampled in the frame of the source image."""

import torch
from torch import Tensor

from lt_mm.core.geometry.boxes import map_points

_SMALLEST_SIDE = 1e-6  # pixels; a RoI with a smaller one has no area


def masks_to_source(
    mask_logits: Tensor,
    rois_xyxy: Tensor,
    matrices: Tensor,
    regions_xyxy: Tensor,
    size: int,
    max_blur: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """psi^-1 for masks: resamples them on a canonical grid of the source instance.

    Each cell centre of a ``size`` x ``size`` grid over the instance's region in the
    source image is moved into the replica by the instance's own matrix, and the mask is
    read there by bilinear interpolation. No inverse is taken, so rotated, sheared and
    mirrored replicas are all exact up to interpolation.

    Args:
        mask_logits: (N, h, w), unnormalised, on a regular grid over the RoI (cell
            centres at (i + 0.5) / w of its side, as in RoIAlign); receives gradient.
        rois_xyxy: (N, 4), the RoI of each mask; pixels of its replica.
        matrices: (N, 3, 3), from source to replica.
        regions_xyxy: (N, 4), region of each instance; pixels of the source image.
            Equal for the masks that are to be compared.
        size: Cells of the grid along each side.
        max_blur: Cells that are read from probabilities which differ by more, such as those on
            both sides of an edge, do not count as inside: what is read there is neither, and
            depends on where the grid of the RoI lies. It is their standard deviation, with the
            weights of the interpolation: 0 at a mask's own cell, half the step midway
            between two. Any is allowed by default.

    Returns:
        (N, size, size) logits on the grid, in float32 or wider, and (N, size, size)
        bool: whether the cell lies inside the RoI, so that the mask says something
        about it. No cell lies inside a RoI without area, or with NaN. Carries no gradient.
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
    probabilities = wide.detach().sigmoid()
    values = torch.nn.functional.grid_sample(
        torch.stack([wide, probabilities, probabilities.square()], dim=1),
        grid.view(-1, size, size, 2),
        padding_mode='border',
        align_corners=False,
    )
    _, mean, square = values.detach().unbind(dim=1)
    inside = inside.view(-1, size, size) & (square - mean.square() <= max_blur**2)
    return values[:, 0], inside
