"""Counting and logging of what is wrong with the data, from worker processes too."""

import logging

import torch
from mmengine.logging import print_log


class DataSetError(ValueError):
    """A data set cannot be trained on."""


class Tally:
    """A set of numbers, shared by all processes that a data loader starts.

    It lies in shared memory, since every epoch may have new workers. Each number has a
    place of its own to begin with, so that workers seldom write to the same one.

    Args:
        capacity: How many different numbers are remembered.
    """

    def __init__(self, capacity: int) -> None:
        self._numbers = torch.full((capacity,), -1, dtype=torch.int64).share_memory_()

    def add(self, number: int) -> bool:
        """Remembers a number (0 or more); whether it is new and there was room for it."""
        size = len(self._numbers)
        for place in (slot % size for slot in range(number, number + size)):
            found = int(self._numbers[place])
            if found == number:
                return False
            if found == -1:
                self._numbers[place] = number
                return True
        return False

    def __len__(self) -> int:
        return int((self._numbers != -1).sum())

    def is_full(self) -> bool:
        """Whether further numbers are not remembered."""
        return len(self) == len(self._numbers)


def warn(message: str) -> None:
    """Logs a warning with MMEngine's logger."""
    print_log(message, logger='current', level=logging.WARNING)
