"""The heads of this process that compare replicas.

Samplers and heads see nothing of each other. A sampler that repeats images looks here for a
head that wants the replicas, and says so where there is none.
"""

import weakref

from torch import nn

_HEADS: weakref.WeakSet = weakref.WeakSet()


def enrol(head: nn.Module) -> None:
    """Notes that a head compares replicas, for as long as it exists."""
    _HEADS.add(head)


def exist() -> bool:
    """Whether there is a head that compares replicas."""
    return len(_HEADS) > 0


def has(module: nn.Module) -> bool:
    """Whether a module compares replicas."""
    return module in _HEADS
