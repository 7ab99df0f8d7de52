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

from lt_mm.core.geometry.boxes import (
    boxes_to_replica,
    boxes_to_source,
    map_boxes,
    map_points,
    move_boxes,
    points_to_replica,
    points_to_source,
    side_positions_to_source,
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
from lt_mm.core.geometry.restoration import moved_outlines, restoration_errors

__all__ = [
    'boxes_to_replica',
    'boxes_to_source',
    'flip_matrix',
    'invert',
    'is_axis_aligned',
    'is_invertible',
    'map_boxes',
    'map_points',
    'masks_to_source',
    'move_boxes',
    'moved_outlines',
    'points_to_replica',
    'points_to_source',
    'restoration_errors',
    'rotation_matrix',
    'scale_about_matrices',
    'scale_matrix',
    'side_positions_to_source',
    'translation_matrix',
    'visible_fraction',
]
