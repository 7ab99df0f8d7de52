"""A source is loaded once for replicas that follow each other."""

import copy
from collections.abc import Callable
from typing import Any

from lt_mm.datasets.transforms.samples import source_key


class SharedLoading:
    """Remembers what was loaded for a source, as long as its replicas follow each other.

    Each replica gets arrays of its own, since augmentations may write into them. Copies
    are made once a source has come more than once in a row, and no longer when sources
    come once: then nobody would use them.
    """

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._values: dict | None = None
        self._is_repeating = True  # whether the last source came more than once

    def load(self, results: dict, load: Callable[[dict], Any]) -> Any:
        """Loads a source, or repeats what was loaded for it.

        Args:
            results: As the data set gives it; may be changed.
            load: Gives what is loaded.
        """
        key = source_key(results)
        is_again = key == self._key
        if is_again and self._values is not None:
            self._is_repeating = True
            results.update(copy.deepcopy(self._values))
            return results
        incoming = dict(results)
        loaded = load(results)
        self._values = None
        if is_again or self._is_repeating:
            self._values = copy.deepcopy(
                {
                    name: value
                    for name, value in loaded.items()
                    if name not in incoming or value is not incoming[name]
                }
            )
        self._key, self._is_repeating = key, is_again
        return loaded
