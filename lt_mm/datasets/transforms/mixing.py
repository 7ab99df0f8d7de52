"""Images for the transforms that mix several of them (Mosaic, MixUp, CopyPaste).

``MultiImageMixDataset`` goes through its list of transforms one by one: it leaves out those that
are switched off, draws and loads the images that a transform asks for, and runs the transform.
An :class:`~lt_mm.datasets.InvertiblePipeline` in that list does the same with its own list, in
the same order, so that the same seed gives the same images.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from lt_mm.datasets.reporting import warn
from lt_mm.datasets.transforms.box_record import check_entry


class Mixing:
    """Says which transforms of a pipeline are switched off, and draws images for the others.

    Args:
        transforms: All transforms of a pipeline. Those with a method ``get_indexes`` mix.
        given: The same, as the user gave them: configs or objects.
        max_refetch: How often images are drawn where the inner pipeline rejects one.
    """

    def __init__(
        self, transforms: Sequence[Callable], given: Sequence[Any], max_refetch: int
    ) -> None:
        self.mixers: list[Any] = [each for each in transforms if hasattr(each, 'get_indexes')]
        self._max_refetch = max_refetch
        self._types = [
            each['type'] if isinstance(each, dict) else type(each).__name__ for each in given
        ]
        self._images: Any = None
        self._holder: Any = None
        self._has_warned = False

    def held_by(self, dataset: Any) -> None:
        """Says which data set has the pipeline, and so which transforms are switched off.

        Args:
            dataset: A ``MultiImageMixDataset``.
        """
        self._holder = dataset

    def get_indexes(self, dataset: Any) -> list[int]:
        """Takes the data set to draw from; none yet, since stock draws before each transform.

        Args:
            dataset: The inner one of a ``MultiImageMixDataset``, which asks for the indices.
        """
        self._images = dataset
        if self._holder is None and not self._has_warned:
            warn(
                'nothing told an InvertiblePipeline which MultiImageMixDataset it belongs to, so '
                f'skip_type_keys and YOLOXModeSwitchHook switch nothing off in {self._types}. '
                'Train with a sampler of lt_mm or with tools/train.py, or leave these transforms '
                "outside and wrap the last one alone: pipeline=[..., dict(type='lt_mm."
                "InvertiblePipeline', transforms=[dict(type='PackDetInputs')])]"
            )
            self._has_warned = True
        return []

    @property
    def num_attempts(self) -> int:
        """How often a transform may reject a sample; ``MultiImageMixDataset`` tries again."""
        return 1 if self._images is None and self._holder is None else self._max_refetch

    def is_off(self, place: int) -> bool:
        """Whether a transform is switched off, by the names that the holder skips."""
        return self._types[place] in (getattr(self._holder, '_skip_type_keys', None) or ())

    def draw(self, transform: Callable, given: list[dict] | None) -> list[dict] | None:
        """The images that a transform asks for; None where it asks for none.

        Args:
            transform: One of the pipeline.
            given: What it gets where there is no data set to draw from.

        Raises:
            RuntimeError: If the inner pipeline rejects images all the time.
        """
        if transform not in self.mixers:
            return None
        if self._images is None:
            return given
        mixer: Any = transform
        for _ in range(self._max_refetch):
            indices = mixer.get_indexes(self._images)
            indices = indices if isinstance(indices, Sequence) else [indices]
            images = [copy.deepcopy(self._images[index]) for index in indices]
            if None not in images:
                for image in images:
                    check_entry(image)
                return images
        raise RuntimeError(
            f'{type(transform).__name__} found no images to mix with: in {self._max_refetch} '
            'draws the pipeline of the inner data set rejected one each time; expected a pipeline '
            'that keeps most images. Check it, or set a larger max_refetch in the '
            'InvertiblePipeline around this transform'
        )
