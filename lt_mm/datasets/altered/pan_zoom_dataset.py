"""The frames of a slow pan and zoom over each image, the same in every run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lt_mm.core.geometry import scale_matrix
from lt_mm.datasets.altered.insertion import insert_after_loading
from lt_mm.datasets.altered.pan_zoom import PanZoom
from lt_mm.datasets.display import file_of, rgb_image
from lt_mm.datasets.replica_dataset import RepeatedImages
from lt_mm.registry import DATASETS, register
from lt_mm.structures import ImageRecord


@register(DATASETS)
class PanZoomDataset(RepeatedImages):
    """T frames of a slow pan and zoom over each image of a data set.

    Sample i is frame ``i % T`` of chosen image ``i // T``. A window moves from one place of the
    image to another and changes its size on the way; each frame is enlarged to the size of the
    image. The paths depend on the seed and the image alone, so two models see the same frames.

    The pipeline of the data set is that of validation. The frame takes the place of the loaded
    image, and whatever follows in the pipeline works on the frame. The metainfo of a sample has the
    fields of :class:`lt_mm.structures.ImageRecord` and ``frame_matrix``, (3, 3) float64, from
    pixels of the source to those of the frame; ``frame_index``; and ``num_frames``, T. Of
    detectors, ``source_matrix`` is the matrix of the frame and that of the ``scale_factor``: the
    pipeline of their validation moves pixels by a resize alone, and pads right and below.

    Annotated instances are left out, so stock metrics of detectors mean nothing here. Labels of
    images stay.

    Args:
        dataset: The data set, or its config; its pipeline begins with loading, is not wrapped
            in an ``InvertiblePipeline``, and draws nothing at random.
        num_frames: T, 2 or more.
        seed: A number >= 0.
        shares: Smallest and largest side of the window, as a share of that of the image.
        indices: See :class:`~lt_mm.datasets.replica_dataset.RepeatedImages`, here and below.
        max_images: At most so many images.

    Raises:
        ValueError: If a number is out of range, ``indices`` and ``max_images`` are both given, or
            the pipeline cannot be used.
    """

    def __init__(
        self,
        dataset: Any,
        num_frames: int = 16,
        seed: int = 0,
        shares: tuple[float, float] = (0.65, 0.9),
        indices: Sequence[int] | None = None,
        max_images: int | None = None,
    ) -> None:
        if num_frames < 2 or seed < 0:
            raise ValueError(
                f'num_frames is {num_frames} and seed {seed}; expected 2 or more frames and a '
                'seed >= 0'
            )
        if not 0 < shares[0] <= shares[1] <= 1:
            raise ValueError(
                f'shares are {shares}; expected the smallest and the largest side of the window, '
                'two numbers in (0, 1], the smaller one first'
            )
        super().__init__(dataset, num_frames, indices, max_images)
        self.seed = seed
        self._pan_zoom = PanZoom(num_frames, (shares[0], shares[1]))
        insert_after_loading(self.dataset, self._pan_zoom)

    def __getitem__(self, index: int) -> dict:
        image, frame = self.image_and_copy(index)
        self._pan_zoom.show(frame, self.seed, image)
        output = self.dataset[image]
        self._write_record(output['data_samples'], image, frame)
        return output

    def frame(self, index: int) -> np.ndarray:
        """The frame of a sample before the pipeline goes on, (H, W, 3) uint8 RGB."""
        sample = self[index]['data_samples']
        return rgb_image(self._pan_zoom.image, is_bgr=file_of(sample) is not None)

    def _write_record(self, sample: Any, image: int, frame: int) -> None:
        shape, matrix = self._pan_zoom.shape, self._pan_zoom.matrix
        # Of classifiers it would not tell of the crop that follows the resize.
        scale = sample.get('scale_factor', (1, 1)) if 'gt_instances' in sample else None
        record = ImageRecord(
            source_id=image,
            num_replicas=self.num_copies,
            source_shape=shape,
            recorded_shape=sample.get('img_shape'),
            source_matrix=None if scale is None else scale_matrix(*scale[:2]) @ matrix,
        )
        facts = dict(frame_matrix=matrix, frame_index=frame, num_frames=self.num_copies)
        for name, value in {**record.metainfo(), **facts}.items():  # set_metainfo makes deep copies
            sample.set_field(value, name, field_type='metainfo')
