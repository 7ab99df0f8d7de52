"""Images for the transforms that mix several of them (Mosaic, MixUp, CopyPaste)."""

from collections.abc import Callable, Sequence
from typing import Any


class Mixing:
    """Asks for the images of all transforms that mix, and hands each its own.

    Args:
        transforms: All transforms of a pipeline. Those with a method ``get_indexes`` mix.
    """

    def __init__(self, transforms: Sequence[Callable]) -> None:
        self.mixers: list[Any] = [each for each in transforms if hasattr(each, 'get_indexes')]
        self._counts: list[int] = []

    def get_indexes(self, dataset: Any) -> list[int]:
        """Indices of the images that the transforms want, in the order of these."""
        wanted = [transform.get_indexes(dataset) for transform in self.mixers]
        lists = [list(each) if isinstance(each, Sequence) else [each] for each in wanted]
        self._counts = [len(indices) for indices in lists]
        return [index for indices in lists for index in indices]

    def images_for(self, transform: Callable, images: list[dict]) -> list[dict]:
        """Those of the images that a transform asked for.

        Args:
            transform: One of ``mixers``.
            images: ``mix_results``, in the order of :meth:`get_indexes`.
        """
        if not self._counts:  # called by hand, without a data set
            return images
        place = self.mixers.index(transform)
        start = sum(self._counts[:place])
        return images[start : start + self._counts[place]]
