"""Matrices (3x3) from the pixels of a source image to those of a replica, and what they move.

Convention, stated once for the whole package: MMDetection's *edge* coordinates. A pixel covers a
unit square, the image covers ``[0, W] x [0, H]``, a horizontal flip maps ``x`` to ``W - x``.
Matrices are homogeneous and act on column vectors: ``replica ~ M @ source``. They are kept in
float64; chains of transforms are composed by multiplying from the left.

Data workers, which have few boxes, use numpy arrays: the builders of matrices, :func:`move_boxes`,
:func:`visible_fraction` and :func:`cut_sides`. All other functions are batched torch functions,
differentiable unless they say which rows or sides are meant.

No NaN comes out unless a point or a box that goes in holds one. A matrix that cannot be
used (its entries are not finite, or beyond 1e100) moves everything to the origin.
Coordinates beyond half the largest number of a precision stop there, so that the
difference of two of them is finite. :func:`is_invertible` is False for matrices whose
boxes must not be paired. Builders raise ``ValueError`` for numbers that are not finite.
"""

from lt_mm.core.geometry.boxes import (
    boxes_to_source,
    cut_sides,
    map_boxes,
    map_points,
    move_boxes,
    points_to_source,
    side_positions_to_source,
    sides_at_border,
    visible_fraction,
)
from lt_mm.core.geometry.masks import masks_to_source
from lt_mm.core.geometry.matrices import (
    flip_matrix,
    invert,
    is_axis_aligned,
    is_invertible,
    rotation_matrix,
    scale_about_matrices,
    scale_matrix,
    translation_matrix,
)
from lt_mm.core.geometry.overlaps import box_areas, overlap_of_masks, pairwise_iou, wide
from lt_mm.core.geometry.restoration import moved_outlines, restoration_errors
from lt_mm.core.geometry.windows import pan_zoom_matrices

__all__ = [
    'box_areas',
    'boxes_to_source',
    'cut_sides',
    'flip_matrix',
    'invert',
    'is_axis_aligned',
    'is_invertible',
    'map_boxes',
    'map_points',
    'masks_to_source',
    'move_boxes',
    'moved_outlines',
    'overlap_of_masks',
    'pairwise_iou',
    'pan_zoom_matrices',
    'points_to_source',
    'restoration_errors',
    'rotation_matrix',
    'scale_about_matrices',
    'scale_matrix',
    'side_positions_to_source',
    'sides_at_border',
    'translation_matrix',
    'visible_fraction',
    'wide',
]
