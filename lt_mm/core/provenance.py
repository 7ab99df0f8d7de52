"""Where boxes come from: the source of each, and the matrix that brought it here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 0.01  # px, what rebuilding boxes from numbers may change of them


@dataclass(frozen=True)
class Provenance:
    """Where n boxes come from and how they got here. Never modified in place.

    Attributes:
        source_ids: (n, 2) int64: the source image's id, the place of the instance in
            that image's list of annotations.
        source_boxes: (n, 4) float64, the annotated boxes, xyxy in source pixels.
        matrices: (n, 3, 3) float64, from source pixels to current pixels.
        from_masks: (n,) bool, whether the box was made anew from a mask on the way.
        image_matrix: (3, 3) float64, the same for the image as a whole; None where no
            single matrix describes it (several images were merged, or it is unknown).
        image_id: The id of the image that the box set belongs to.
    """

    source_ids: np.ndarray
    source_boxes: np.ndarray
    matrices: np.ndarray
    from_masks: np.ndarray
    image_matrix: np.ndarray | None
    image_id: int

    @classmethod
    def start(
        cls, boxes_xyxy: Tensor, image_id: int, rows: np.ndarray | None = None
    ) -> 'Provenance':
        """The provenance of boxes that have just been loaded.

        Args:
            boxes_xyxy: (n, 4), source pixels.
            image_id: The source image's id.
            rows: (n,) int64, their places in its list of annotations; by default 0, 1, 2, ...
        """
        count = len(boxes_xyxy)
        source_ids = np.full((count, 2), image_id, dtype=np.int64)
        source_ids[:, 1] = np.arange(count) if rows is None else rows
        matrices = np.empty((count, 3, 3))
        matrices[:] = np.eye(3)
        return cls(
            source_ids=source_ids,
            source_boxes=boxes_xyxy.detach().numpy().astype(np.float64).reshape(-1, 4),
            matrices=matrices,
            from_masks=np.zeros(count, dtype=bool),
            image_matrix=np.eye(3),
            image_id=image_id,
        )

    @classmethod
    def blank(cls, count: int) -> 'Provenance':
        """Stands in for boxes whose provenance will be known later."""
        return cls.start(torch.zeros(count, 4), image_id=-1).with_unknown_image()

    def __len__(self) -> int:
        return len(self.source_ids)

    def __getitem__(self, index: Any) -> 'Provenance':
        return replace(
            self,
            source_ids=self.source_ids[index].reshape(-1, 2),
            source_boxes=self.source_boxes[index].reshape(-1, 4),
            matrices=self.matrices[index].reshape(-1, 3, 3),
            from_masks=self.from_masks[index].reshape(-1),
        )

    def moved(self, matrix: np.ndarray) -> 'Provenance':
        """After a matrix (3, 3) moved the whole image."""
        image = None if self.image_matrix is None else matrix @ self.image_matrix
        return replace(self, matrices=matrix @ self.matrices, image_matrix=image)

    def moved_each(self, matrices: np.ndarray) -> 'Provenance':
        """After matrices (n, 3, 3) moved each box by itself; the image stays where it is."""
        return replace(self, matrices=matrices @ self.matrices)

    def made_from_masks(self) -> 'Provenance':
        """After all boxes were made anew, around the masks of their instances."""
        return replace(self, from_masks=np.ones_like(self.from_masks))

    def with_unknown_image(self) -> 'Provenance':
        """After a transform that may have moved the image unrecorded."""
        return replace(self, image_matrix=None)

    def overlaid(self, rows: np.ndarray, other: 'Provenance') -> 'Provenance':
        """The n rows of both: the k that are marked from the other, the rest from this.

        Args:
            rows: (n,) bool, k of them True.
            other: k rows, of the image that the result belongs to.
        """

        def overlay(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            both = mine.copy()
            both[rows] = theirs
            return both

        return replace(
            self,
            source_ids=overlay(self.source_ids, other.source_ids),
            source_boxes=overlay(self.source_boxes, other.source_boxes),
            matrices=overlay(self.matrices, other.matrices),
            from_masks=overlay(self.from_masks, other.from_masks),
            image_id=other.image_id,
        )

    @staticmethod
    def cat(parts: Sequence['Provenance']) -> 'Provenance':
        """The provenance of merged box sets, which belong to the image of the first.

        The image keeps its matrix only where all parts are of it and agree on the matrix.
        """
        images = [part.image_matrix for part in parts if part.image_matrix is not None]
        is_one_image = (
            len({part.image_id for part in parts}) == 1
            and len(images) == len(parts)
            and all(np.array_equal(image, images[0]) for image in images)
        )
        return Provenance(
            source_ids=np.concatenate([part.source_ids for part in parts]),
            source_boxes=np.concatenate([part.source_boxes for part in parts]),
            matrices=np.concatenate([part.matrices for part in parts]),
            from_masks=np.concatenate([part.from_masks for part in parts]),
            image_matrix=images[0] if is_one_image else None,
            image_id=parts[0].image_id,
        )


def match_rows(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """Finds boxes among those that they were before.

    Args:
        before: (n, 4).
        after: (k, 4), some of them in the same order; numbers may differ by ``ROUNDING`` px.

    Returns:
        (k,) int64, the rows of ``before``, ascending. None where they cannot be found in this
        order (mirrored boxes may take each other's place), or in more than one way (where only
        some of several equal rows were kept, these may be any).
    """
    first = _first_rows(before, after)
    last = _first_rows(before[::-1], after[::-1])
    if first is None or last is None:
        return None
    return first if np.array_equal(first, len(before) - 1 - last[::-1]) else None


def _first_rows(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """(k,) int64, for each row of ``after`` the first of ``before`` that it can be, in order."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    rows, start = np.empty(len(after), dtype=np.int64), 0
    for place, box in enumerate(after):
        near = (np.abs(before[start:] - box) <= ROUNDING).all(axis=1)
        if not near.any():
            return None
        rows[place] = start + near.argmax()
        start = rows[place] + 1
    return rows
