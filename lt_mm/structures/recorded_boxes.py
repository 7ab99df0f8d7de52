"""Boxes that record what is done to them.

Every stock transform, and most third-party ones, move boxes only through the
methods of the box type. :class:`TracedBoxes` is MMDetection's own box type plus a
:class:`Trace`; each method that moves boxes also multiplies the trace. So the exact
geometry is known without one line of code per transform, and it stays known where
several images are merged, because every box carries its own matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, register_box, register_box_converter
from torch import Tensor

from lt_mm.core import geometry


@dataclass(frozen=True)
class Trace:
    """Where n boxes come from and how they got here. Never modified in place.

    Attributes:
        source_ids: (n, 2) int64: the source image's id, the index of the instance in
            that image's list of annotations.
        source_boxes: (n, 4) float64, the annotation boxes, xyxy in source pixels.
        matrices: (n, 3, 3) float64, views from source pixels to current pixels.
        image_matrix: (3, 3) float64, the view of the image as a whole; None where no
            single matrix describes it (several images merged, or unknown).
        image_id: The id of the image that the box set belongs to.
    """

    source_ids: np.ndarray
    source_boxes: np.ndarray
    matrices: np.ndarray
    image_matrix: np.ndarray | None
    image_id: int

    @classmethod
    def start(cls, boxes_xyxy: Tensor, image_id: int, rows: np.ndarray | None = None) -> 'Trace':
        """The trace of boxes that have just been loaded.

        Args:
            boxes_xyxy: (n, 4), source pixels.
            image_id: The source image's id.
            rows: (n,) int64, their places in its list of annotations; 0, 1, ... unless
                given.
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
            image_matrix=np.eye(3),
            image_id=image_id,
        )

    def __len__(self) -> int:
        return len(self.source_ids)

    def __getitem__(self, index: Any) -> 'Trace':
        return replace(
            self,
            source_ids=self.source_ids[index].reshape(-1, 2),
            source_boxes=self.source_boxes[index].reshape(-1, 4),
            matrices=self.matrices[index].reshape(-1, 3, 3),
        )

    def moved(self, matrix: np.ndarray) -> 'Trace':
        """After one view (3, 3) of the whole image."""
        image = None if self.image_matrix is None else matrix @ self.image_matrix
        return replace(self, matrices=matrix @ self.matrices, image_matrix=image)

    def moved_each(self, matrices: np.ndarray) -> 'Trace':
        """After one view for each box (n, 3, 3); the image stays where it is."""
        return replace(self, matrices=matrices @ self.matrices)

    def with_unknown_image(self) -> 'Trace':
        """After a transform that may have moved the image unseen."""
        return replace(self, image_matrix=None)

    def overlaid(self, rows: np.ndarray, other: 'Trace') -> 'Trace':
        """This record with the k rows marked in (n,) bool taken from another of k."""

        def overlay(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            both = mine.copy()
            both[rows] = theirs
            return both

        return replace(
            self,
            source_ids=overlay(self.source_ids, other.source_ids),
            source_boxes=overlay(self.source_boxes, other.source_boxes),
            matrices=overlay(self.matrices, other.matrices),
        )

    @staticmethod
    def cat(traces: Sequence['Trace']) -> 'Trace':
        """The trace of merged box sets.

        The image as a whole keeps its matrix only where all parts agree on it.
        """
        first = traces[0]
        one_image = all(
            trace.image_id == first.image_id
            and trace.image_matrix is not None
            and np.array_equal(trace.image_matrix, first.image_matrix)
            for trace in traces
        )
        return Trace(
            source_ids=np.concatenate([t.source_ids for t in traces]),
            source_boxes=np.concatenate([t.source_boxes for t in traces]),
            matrices=np.concatenate([t.matrices for t in traces]),
            image_matrix=first.image_matrix if one_image else None,
            image_id=first.image_id,
        )


@register_box('lt_traced_hbox')
class TracedBoxes(HorizontalBoxes):
    """MMDetection's horizontal boxes with a :class:`Trace`.

    A set is *untraced* (``trace is None``) when it was made from numbers: by the
    constructor or from masks. ``TracedResults`` of the pipeline gives boxes made from
    masks the trace of the boxes they replace; whatever is still untraced after a
    transform is an error there.

    Attributes:
        trace: The record, or None.
        mask_rows: (n,) int64 for boxes made from masks: the row of the mask, -1 for
            traced rows; None elsewhere.
        mask_count: How many masks those boxes were made from.
    """

    def __init__(
        self,
        data: Tensor | np.ndarray | Sequence,
        *args: Any,
        trace: Trace | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data, *args, **kwargs)
        self.mask_rows: np.ndarray | None = None
        self.mask_count = 0
        self.trace = trace
        self._is_tainted = False
        self._stamp()

    # -- what is known ---------------------------------------------------------

    def _stamp(self) -> None:
        """Remembers the coordinates that the trace speaks of."""
        self._stamped = (self.tensor.clone(), self.tensor, _version(self.tensor))

    def written_behind(self) -> bool:
        """Whether coordinates were written other than by this class's methods.

        Also where the same numbers were written: the boxes of a mirrored image may
        look like those before.
        """
        values, tensor, version = self._stamped
        return (
            self._is_tainted
            or self.tensor is not tensor
            or _version(tensor) != version
            or not torch.equal(values, tensor)
        )

    def is_recorded(self) -> bool:
        """Whether the trace speaks of every row and of the coordinates as they are."""
        return self.trace is not None and self.mask_rows is None and not self.written_behind()

    def _refuse_if_written_behind(self) -> None:
        if self.written_behind():
            raise LostTraceError(
                'box coordinates were written directly (into .tensor or its numpy '
                'view), so the record of where the boxes come from is no longer true'
            )

    # -- what keeps the rows ---------------------------------------------------

    def __getitem__(self, index: Any) -> 'TracedBoxes':
        self._refuse_if_written_behind()
        result = super().__getitem__(index)
        rows = _as_numpy_index(index)
        if self.trace is not None:
            result.trace = self.trace[rows]
        if self.mask_rows is not None:
            result.mask_rows = self.mask_rows[rows]
            result.mask_count = self.mask_count
        return result

    def __setitem__(self, index: Any, values: 'TracedBoxes') -> None:
        raise LostTraceError(
            'boxes were replaced row by row (boxes[i] = other), which is not recorded'
        )

    def __deepcopy__(self, memo: dict) -> 'TracedBoxes':
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__dict__.update(self.__dict__)
        result.tensor = self.tensor.clone()
        result._is_tainted = self.written_behind()
        result._stamp()
        return result

    def __getstate__(self) -> dict:
        """A process that unpickles counts a tensor's versions anew."""
        state = dict(self.__dict__, _is_tainted=self.written_behind())
        del state['_stamped']
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._stamp()

    def clone(self) -> 'TracedBoxes':
        return self.__deepcopy__({})

    def detach(self) -> 'TracedBoxes':
        return self.clone()

    def cpu(self) -> 'TracedBoxes':
        return self.clone()

    @classmethod
    def cat(cls, box_list: Sequence[BaseBoxes], dim: int = 0) -> 'TracedBoxes':
        """Merges sets; rows made from masks stay marked until they are resolved."""
        for boxes in box_list:
            if isinstance(boxes, TracedBoxes):
                boxes._refuse_if_written_behind()
        result = cls(torch.cat([boxes.tensor for boxes in box_list], dim=dim))
        if dim != 0 or not all(_has_record(boxes) for boxes in box_list):
            return result
        traces = [
            boxes.trace if boxes.trace is not None else _blank_trace(len(boxes))
            for boxes in box_list
        ]
        result.trace = Trace.cat(traces)
        if any(boxes.mask_rows is not None for boxes in box_list):
            result.mask_rows = np.concatenate(
                [
                    np.full(len(boxes), -1) if boxes.mask_rows is None else boxes.mask_rows
                    for boxes in box_list
                ]
            )
            result.mask_count = max(getattr(b, 'mask_count', 0) for b in box_list)
        return result

    @staticmethod
    def from_instance_masks(masks: Any) -> 'TracedBoxes':
        """Boxes around masks: untraced, but row i is known to be mask i."""
        result = TracedBoxes(HorizontalBoxes.from_instance_masks(masks).tensor)
        result.mask_rows = np.arange(len(result))
        result.mask_count = len(result)
        return result

    def resolve(self, replaced: 'TracedBoxes') -> bool:
        """Gives rows made from masks the trace of the boxes that they replace.

        Args:
            replaced: The set that the masks belong to, row by row.

        Returns:
            Whether every row is traced now.
        """
        if self.mask_rows is None:
            return self.trace is not None
        if replaced.trace is None or self.mask_count != len(replaced):
            return False
        from_masks = self.mask_rows >= 0
        inherited = replaced.trace[self.mask_rows[from_masks]]
        if from_masks.all():
            self.trace = inherited
        else:
            self.trace = replace(
                self.trace.overlaid(from_masks, inherited), image_id=inherited.image_id
            )
        self.mask_rows = None
        return True

    # -- what moves boxes ------------------------------------------------------

    def _record(self, matrix: np.ndarray) -> None:
        if self.trace is not None:
            self.trace = self.trace.moved(matrix)
        self._stamp()

    def flip_(self, img_shape: tuple[int, int], direction: str = 'horizontal') -> None:
        self._refuse_if_written_behind()
        super().flip_(img_shape, direction)
        self._record(geometry.flip_matrix(img_shape, direction))

    def translate_(self, distances: tuple[float, float]) -> None:
        self._refuse_if_written_behind()
        super().translate_(distances)
        self._record(geometry.translation_matrix(*map(float, distances)))

    def rescale_(self, scale_factor: tuple[float, float]) -> None:
        self._refuse_if_written_behind()
        super().rescale_(scale_factor)
        self._record(geometry.scale_matrix(*map(float, scale_factor)))

    def rotate_(self, center: tuple[float, float], angle: float) -> None:
        self._refuse_if_written_behind()
        super().rotate_(center, angle)
        self._record(geometry.rotation_matrix(center, angle))

    def project_(self, homography_matrix: Tensor | np.ndarray) -> None:
        self._refuse_if_written_behind()
        super().project_(homography_matrix)
        self._record(np.asarray(homography_matrix, dtype=np.float64))

    def resize_(self, scale_factor: tuple[float, float]) -> None:
        self._refuse_if_written_behind()
        centers = self.centers.double().numpy()
        super().resize_(scale_factor)
        if self.trace is not None:
            self.trace = self.trace.moved_each(
                geometry.scale_about_matrices(centers, *map(float, scale_factor))
            )
        self._stamp()

    def clip_(self, img_shape: tuple[int, int]) -> None:
        """Clipping changes what is visible, not where the instance is."""
        self._refuse_if_written_behind()
        super().clip_(img_shape)
        self._stamp()


# Code that asks for plain boxes (MinIoURandomCrop's overlaps, for example) goes
# through MMDetection's converters.
register_box_converter('lt_traced_hbox', 'hbox', lambda boxes: boxes)
register_box_converter('hbox', 'lt_traced_hbox', lambda boxes: boxes)


class LostTraceError(ValueError):
    """A transform broke the record of where boxes come from."""


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _has_record(boxes: BaseBoxes) -> bool:
    return isinstance(boxes, TracedBoxes) and (
        boxes.trace is not None or boxes.mask_rows is not None
    )


def _blank_trace(count: int) -> Trace:
    """Stands in for rows whose trace is resolved later."""
    return replace(Trace.start(torch.zeros(count, 4), image_id=-1), image_matrix=None)


def _as_numpy_index(index: Any) -> Any:
    """The index that picks from numpy arrays what ``index`` picks from boxes."""
    if isinstance(index, Tensor):
        index = index.cpu().numpy()
    if isinstance(index, (list, tuple)):
        index = np.asarray(index)
    if isinstance(index, np.ndarray) and index.size == 0 and index.dtype != bool:
        index = index.astype(np.int64)
    if isinstance(index, np.ndarray) and index.dtype == np.uint8:
        index = index.astype(bool)
    if isinstance(index, (int, np.integer)):
        index = slice(index, index + 1) if index != -1 else slice(-1, None)
    return index
