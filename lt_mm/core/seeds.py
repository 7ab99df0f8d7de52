"""Seeds of the random generators of Python, numpy and torch, from several numbers."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seeds the generators.

    Args:
        key: Numbers >= 0. Different keys of one length give different random numbers.
    """
    python, numpy, torch_ = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(python))
    np.random.seed(numpy)
    torch.manual_seed(int(torch_))


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds the generators within a block; afterwards they go on as before it.

    Args:
        key: As for :func:`seed_all`.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*key)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
