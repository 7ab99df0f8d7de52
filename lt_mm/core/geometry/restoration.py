"""How well the boxes of replicas come back to the annotations of their source."""

import torch
from torch import Tensor

from lt_mm.core.geometry.boxes import boxes_to_source, map_points

# A box that lost a smaller share of its area is whole: float32 rounds pixels.
_CUT = 1e-4


def restoration_errors(
    boxes_xyxy: Tensor, matrices: Tensor, annotated_xyxy: Tensor, visibility: Tensor
) -> Tensor:
    """How far restored boxes lie from the annotations that they show.

    A box that is whole in its replica has to come back to its annotation. A box that was
    cut comes back to a part of it: there only what reaches beyond is an error.

    Args:
        boxes_xyxy: (N, 4), pixels of the replicas.
        matrices: (N, 3, 3), from source to replica.
        annotated_xyxy: (N, 4), the annotations; pixels of the source images.
        visibility: (N,), the part of each box that its replica shows.

    Returns:
        (N,) float64, the error of the worst of the four sides in pixels of the source images. It is
        not small where the matrix is not axis-aligned, or where boxes were made anew from masks.
    """
    annotated = annotated_xyxy.double()
    off = boxes_to_source(boxes_xyxy.double(), matrices) - annotated
    beyond = torch.cat([-off[:, :2], off[:, 2:]], dim=1).clamp(min=0)
    is_whole = visibility[:, None] >= 1 - _CUT
    return torch.where(is_whole, off.abs(), beyond).amax(dim=1)


def moved_outlines(boxes_xyxy: Tensor, matrices: Tensor) -> Tensor:
    """The corners of moved boxes, in the order in which an outline joins them.

    Args:
        boxes_xyxy: (N, 4), pixels of the source images.
        matrices: (N, 3, 3), from source to replica.

    Returns:
        (N, 4, 2), pixels of the replicas: the quadrilateral whose hull
        :func:`lt_mm.core.geometry.map_boxes` gives.
    """
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=-1)
    corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=-1)
    return map_points(corners.unflatten(-1, (4, 2)), matrices)
