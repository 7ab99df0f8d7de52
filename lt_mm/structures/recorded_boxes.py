"""Boxes that record what is done to them.

Stock transforms, and most third-party ones, move boxes only through the methods of the
box type. :class:`RecordedBoxes` is MMDetection's own box type plus a :class:`Provenance`;
each method that moves boxes also multiplies its matrices. So the exact geometry is known
without a line of code for any transform, and it stays known when several images are
merged, because every box has its own matrix.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, register_box, register_box_converter
from torch import Tensor

from lt_mm.core import geometry
from lt_mm.core.provenance import Provenance
from lt_mm.structures.errors import LostRecordError


@register_box('lt_recorded_hbox')
class RecordedBoxes(HorizontalBoxes):
    """MMDetection's horizontal boxes with a :class:`Provenance`.

    A set is *unrecorded* (``provenance is None``) if it was made from numbers: by the constructor
    or from masks. In the pipeline, ``RecordedResults`` gives boxes made from masks the provenance
    of the boxes that they replace; any other unrecorded set is an error there.

    Attributes:
        provenance: The record, or None.
        mask_rows: (n,) int64 if boxes were made from masks: the row of the mask, -1 for
            boxes with a record. None otherwise.
        mask_count: From how many masks they were made.
    """

    def __init__(
        self,
        data: Tensor | np.ndarray | Sequence,
        *args: Any,
        provenance: Provenance | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(data, *args, **kwargs)
        self.mask_rows: np.ndarray | None = None
        self.mask_count = 0
        self.provenance = provenance
        self._is_tainted = False
        self._stamp()

    # -- what is known ---------------------------------------------------------

    def _stamp(self) -> None:
        """Remembers the coordinates that the provenance describes."""
        self._stamped = (self.tensor.clone(), self.tensor, _version(self.tensor))

    def written_behind(self) -> bool:
        """Whether coordinates were written in another way than by this class's methods.

        The same numbers count too: the boxes of a mirrored image may look like those before.
        """
        values, tensor, version = self._stamped
        return (
            self._is_tainted
            or self.tensor is not tensor
            or _version(tensor) != version
            or not torch.equal(values, tensor)
        )

    def is_recorded(self) -> bool:
        """Whether there is a provenance of every row, and of the coordinates as they are."""
        return self.provenance is not None and self.mask_rows is None and not self.written_behind()

    def forget_image(self) -> None:
        """Takes note that the image as a whole may have been moved unrecorded."""
        if self.provenance is not None:
            self.provenance = self.provenance.with_unknown_image()

    def _refuse_if_written_behind(self) -> None:
        if self.written_behind():
            raise LostRecordError(
                'box coordinates were written directly (into .tensor or its numpy '
                'array), so the record of where the boxes come from is wrong'
            )

    # -- what selects and copies boxes ---------------------------------------------------

    def __getitem__(self, index: Any) -> 'RecordedBoxes':
        self._refuse_if_written_behind()
        result = super().__getitem__(index)
        rows = _as_numpy_index(index)
        if self.provenance is not None:
            result.provenance = self.provenance[rows]
        if self.mask_rows is not None:
            result.mask_rows = self.mask_rows[rows]
            result.mask_count = self.mask_count
        return result

    def __setitem__(self, index: Any, values: 'RecordedBoxes') -> None:
        raise LostRecordError(
            'boxes were replaced row by row (boxes[i] = other), which is not recorded'
        )

    def __deepcopy__(self, memo: dict) -> 'RecordedBoxes':
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__dict__.update(self.__dict__)
        result.tensor = self.tensor.clone()
        result._is_tainted = self.written_behind()
        result._stamp()
        return result

    def __getstate__(self) -> dict:
        """The process that unpickles counts the versions of tensors from 0 again."""
        state = dict(self.__dict__, _is_tainted=self.written_behind())
        del state['_stamped']
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._stamp()

    def clone(self) -> 'RecordedBoxes':
        return self.__deepcopy__({})

    def detach(self) -> 'RecordedBoxes':
        return self.clone()

    def cpu(self) -> 'RecordedBoxes':
        return self.clone()

    @classmethod
    def cat(cls, box_list: Sequence[BaseBoxes], dim: int = 0) -> 'RecordedBoxes':
        """Merges sets. Boxes made from masks stay marked until they are resolved."""
        for boxes in box_list:
            if isinstance(boxes, RecordedBoxes):
                boxes._refuse_if_written_behind()
        result = cls(torch.cat([boxes.tensor for boxes in box_list], dim=dim))
        if dim != 0 or not all(_has_record(boxes) for boxes in box_list):
            return result
        parts = [
            Provenance.blank(len(boxes)) if boxes.provenance is None else boxes.provenance
            for boxes in box_list
        ]
        result.provenance = Provenance.cat(parts)
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
    def from_instance_masks(masks: Any) -> 'RecordedBoxes':
        """Boxes around masks: unrecorded, but box i is known to belong to mask i."""
        result = RecordedBoxes(HorizontalBoxes.from_instance_masks(masks).tensor)
        result.mask_rows = np.arange(len(result))
        result.mask_count = len(result)
        return result

    def resolve(self, replaced: 'RecordedBoxes') -> bool:
        """Gives boxes made from masks the provenance of the boxes that they replace.

        Args:
            replaced: The set that the masks belong to, row by row.

        Returns:
            Whether every box has a record now.
        """
        if self.mask_rows is None:
            return self.provenance is not None
        if replaced.provenance is None or self.mask_count != len(replaced):
            return False
        from_masks = self.mask_rows >= 0
        inherited = replaced.provenance[self.mask_rows[from_masks]].made_from_masks()
        if from_masks.all():
            self.provenance = inherited
        else:
            assert self.provenance is not None  # `cat` gave one to the other rows
            self.provenance = self.provenance.overlaid(from_masks, inherited)
        self.mask_rows = None
        return True

    # -- what moves boxes ------------------------------------------------------

    def _record(self, matrix: np.ndarray) -> None:
        if self.provenance is not None:
            self.provenance = self.provenance.moved(matrix)
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
        if self.provenance is not None:
            self.provenance = self.provenance.moved_each(
                geometry.scale_about_matrices(centers, *map(float, scale_factor))
            )
        self._stamp()

    def clip_(self, img_shape: tuple[int, int]) -> None:
        """Clips boxes, which changes what is visible and not where the instance is."""
        self._refuse_if_written_behind()
        super().clip_(img_shape)
        self._stamp()


# Code that needs plain boxes (the overlaps of MinIoURandomCrop, for example) uses
# MMDetection's converters.
register_box_converter('lt_recorded_hbox', 'hbox', lambda boxes: boxes)
register_box_converter('hbox', 'lt_recorded_hbox', lambda boxes: boxes)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None if torch does not count it."""
    return None if tensor.is_inference() else tensor._version


def _has_record(boxes: BaseBoxes) -> bool:
    return isinstance(boxes, RecordedBoxes) and (
        boxes.provenance is not None or boxes.mask_rows is not None
    )


def _as_numpy_index(index: Any) -> Any:
    """The index that selects from numpy arrays what ``index`` selects from boxes."""
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
