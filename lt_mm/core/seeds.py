"""Seeds of random generators, those of transforms as well, from several numbers."""

import contextlib
import logging
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch

# Where data sets hold pipelines, and other data sets that do.
_PARTS = ('dataset', 'datasets', 'labelled', 'unlabelled', 'pipeline', 'transform', 'transforms')
_MOST = 100  # a longer list holds data, not transforms
_WITHOUT_PARTS = (
    *(str, bytes, int, float, np.generic, np.ndarray, torch.Tensor),
    *(type, ModuleType, logging.Logger),
)


def seed_all(*key: int, within: Any = None) -> None:
    """Seeds the generators of Python, numpy, torch and imgaug, and those that transforms have.

    Args:
        key: Numbers >= 0. Different keys of one length give different random numbers.
        within: A data set, a transform or a list of them. Whatever it holds, at any depth, that
            has a method ``set_random_seed`` (albumentations from 1.4.21 on) or ``seed_``
            (imgaug), or that is a generator of Python, numpy or torch, gets a seed of its own.
    """
    python, numpy, torch_, imgaug = np.random.SeedSequence(key).generate_state(4)
    if 'imgaug' in sys.modules:  # whoever uses it has imported it
        sys.modules['imgaug'].seed(int(imgaug))  # draws from numpy's the first time
    random.seed(int(python))
    np.random.seed(numpy)
    torch.manual_seed(int(torch_))
    for place, seed in enumerate(_seeders(within)):
        sequence = np.random.SeedSequence(key, spawn_key=(place,))
        seed(int(sequence.generate_state(1)[0]))


@contextlib.contextmanager
def seeded(*key: int, within: Any = None) -> Iterator[None]:
    """Seeds the generators within a block.

    Afterwards those of Python, numpy and torch go on as before it.

    Args:
        key: As for :func:`seed_all`.
        within: As for :func:`seed_all`.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(*key, within=within)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seeders(within: Any) -> Iterator[Callable[[int], Any]]:
    """What takes the seeds of all that draws within an object, always in the same order."""
    seen, waiting = set(), [within]
    for each in waiting:  # which grows meanwhile
        if each is None or isinstance(each, _WITHOUT_PARTS) or id(each) in seen:
            continue
        seen.add(id(each))
        seed = _seeder_of(each)
        if seed is not None:
            yield seed  # it seeds what is inside
        else:
            waiting.extend(_parts_of(each))


def _seeder_of(each: Any) -> Callable[[int], Any] | None:
    """What seeds an object; None if it draws nothing by itself."""
    if isinstance(each, (random.Random, np.random.RandomState)):
        return each.seed
    if isinstance(each, torch.Generator):
        return each.manual_seed
    if isinstance(each, np.random.Generator):
        bits: Any = each.bit_generator
        return lambda seed: setattr(bits, 'state', type(bits)(seed).state)
    for name in ('set_random_seed', 'seed_'):
        if callable(getattr(type(each), name, None)):
            return getattr(each, name)
    return None


def _parts_of(each: Any) -> Iterable[Any]:
    """What an object holds; of a data set its pipelines and generators, not its data."""
    held = getattr(each, '__dict__', {})
    parts: Any = held.values()
    if isinstance(each, (list, tuple, dict)):
        parts = each.values() if isinstance(each, dict) else each
    elif hasattr(type(each), '__getitem__') and not callable(each):
        parts = [value for name, value in held.items() if name in _PARTS or _seeder_of(value)]
    return parts if len(parts) <= _MOST else ()
