"""Random numbers are a function of the key, and those after a seeded block are not."""

import random

import numpy as np
import pytest
import torch

from lt_mm.core.seeds import seed_all, seeded


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_each_key_gives_other_numbers():
    drawn = []
    for key in [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 3), (3, 2**40)]:
        seed_all(*key)
        first = draw()
        seed_all(*key)
        assert draw() == first
        drawn += first
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize('fails', [False, True])
def test_after_a_block_the_generators_go_on(fails):
    seed_all(5)
    expected = [draw(), draw()]
    seed_all(5)
    found = [draw()]
    try:
        with seeded(1, 2):
            inside = draw()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    found.append(draw())
    assert found == expected
    seed_all(1, 2)
    assert inside == draw()
