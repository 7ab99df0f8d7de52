"""Random numbers are a function of the key, and those after a seeded block are not."""

import random
from types import SimpleNamespace

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


class Seedable:
    """Draws from a generator of its own, as albumentations' Compose does from 1.4.21 on."""

    def __init__(self):
        self.set_random_seed(None)

    def set_random_seed(self, seed):
        self.generator = np.random.default_rng(seed)

    def draw(self):
        return self.generator.random()


class Augmenter(Seedable):
    """The same with the method of imgaug's."""

    seed_ = Seedable.set_random_seed
    set_random_seed = None

    def __init__(self):
        self.seed_(None)


class Holding:
    """A transform that holds others, or a generator."""

    def __init__(self, held):
        self.held = held

    def __call__(self, results):
        return results


class Images:
    """A data set; its annotations are not to be walked through."""

    def __init__(self, pipeline):
        self.pipeline, self.annotations = pipeline, UNTOUCHED

    def __getitem__(self, index):
        return index


class Untouchable(list):
    def __iter__(self):
        raise AssertionError


UNTOUCHED = Untouchable([1])
OWN = {
    'set_random_seed': (Seedable, Seedable.draw),
    'seed_': (Augmenter, Augmenter.draw),
    'random.Random': (random.Random, random.Random.random),
    'RandomState': (np.random.RandomState, np.random.RandomState.rand),
    'Generator': (np.random.default_rng, np.random.Generator.random),
    'torch.Generator': (torch.Generator, lambda own: torch.rand(1, generator=own).item()),
}


@pytest.mark.parametrize('name', OWN)
def test_generators_of_transforms_are_seeded_at_any_depth(name):
    make, draw_from = OWN[name]
    own = [make() for _ in range(3)]
    pipeline = Holding([Holding(own[0]), Holding(SimpleNamespace(policy=dict(a=[own[1]], p=1)))])
    within = SimpleNamespace(datasets=[Images(pipeline), Images([Holding(own[2]), pipeline])])
    within.datasets[0].pipeline.back = within  # pipelines may know their data set
    drawn = {}
    for key in [(1, 2), (1, 3), (1, 2)]:
        seed_all(*key, within=within)
        now = [draw_from(each) for each in own]
        assert drawn.setdefault(key, now) == now
    assert len({number for numbers in drawn.values() for number in numbers}) == 6


def test_generators_of_transforms_take_nothing_from_the_others():
    """Runs draw the same as without such transforms, and as before they were seeded."""
    seed_all(7, 8)
    alone = draw()
    seed_all(7, 8, within=[random.Random()])
    assert draw() == alone
    python, numpy, torch_ = np.random.SeedSequence((7, 8)).generate_state(3)
    assert random.Random(int(python)).random() == alone[0]
    assert np.random.RandomState(numpy).rand() == alone[1]
    assert torch.rand(1, generator=torch.Generator().manual_seed(int(torch_))).item() == alone[2]


def test_augmenters_of_imgaug_are_seeded():
    augmenters = pytest.importorskip('imgaug.augmenters')
    augment = Holding([augmenters.Sequential([augmenters.Add((-90, 90)), augmenters.Fliplr(0.5)])])
    image, drawn = np.full((4, 4, 3), 100, np.uint8), []
    for key in (1, 2, 1):
        seed_all(key, within=augment)
        drawn.append([int(augment.held[0](image=image).sum()) for _ in range(4)])
        made = augmenters.Add((-90, 90))  # it takes its generator from that of the module
        drawn[-1].append(int(made(image=image).sum()))
    assert drawn[0] == drawn[2] and drawn[0][0] != drawn[1][0] and drawn[0][-1] != drawn[1][-1]
