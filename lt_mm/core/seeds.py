"""Seeds of the global generators, as a function of several numbers."""

import random

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seeds Python's, numpy's and torch's generators from several numbers.

    Args:
        key: Numbers >= 0; each combination gives other streams.
    """
    python, numpy, torch_ = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(python))
    np.random.seed(numpy)
    torch.manual_seed(int(torch_))
