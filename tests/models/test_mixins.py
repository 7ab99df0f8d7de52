"""Mixins on built objects: copies, several of them, and what is no mixin."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lt_mm.models.mixins import InstanceMixin, mix_in


class Doubling(InstanceMixin):
    prefix = 'Doubling'

    def forward(self, x):
        return 2 * super().forward(x)


class Adding(InstanceMixin):
    prefix = 'Adding'

    def forward(self, x):
        return 1 + super().forward(x)


class KeepsNoCache(nn.Linear):
    """A stock module that leaves something out of its copies."""

    def __getstate__(self):
        return {**self.__dict__, 'cache': None}


class MakesItself(nn.Module):
    """A stock module that says how it is made again."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def __reduce__(self):
        return type(self), (self.size,)

    def forward(self, x):
        return x * self.size


def copies(module):
    return copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))


def test_two_mixins_on_one_module():
    module = mix_in(Adding, mix_in(Doubling, nn.Linear(2, 1)))
    x = torch.rand(3, 2)
    stock = nn.functional.linear(x, module.weight, module.bias)
    torch.testing.assert_close(module(x), 1 + 2 * stock)
    assert type(module).__name__ == 'AddingDoublingLinear'
    for made in copies(module):
        torch.testing.assert_close(made(x), module(x))
        assert type(made) is type(module)
        assert list(made.state_dict()) == ['weight', 'bias']


def test_what_the_stock_class_says_of_its_copies_is_honoured():
    module = mix_in(Doubling, KeepsNoCache(2, 1))
    module.cache = object()
    for made in copies(module):
        assert made.cache is None and type(made) is type(module)
        torch.testing.assert_close(made.weight, module.weight)
    for made in copies(mix_in(Doubling, MakesItself(3))):
        assert made(torch.ones(1)) == 6 and isinstance(made, MakesItself)


def test_only_the_one_instance_changes():
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    mix_in(Doubling, first)
    assert type(second) is nn.Linear and isinstance(first, nn.Linear)


@pytest.mark.parametrize('mixin', [nn.Linear, Doubling(), 'Doubling'])
def test_what_is_no_mixin_is_refused(mixin):
    with pytest.raises(TypeError, match='is no InstanceMixin'):
        mix_in(mixin, nn.Linear(2, 1))


def test_a_mixin_is_added_once():
    module = mix_in(Adding, mix_in(Doubling, nn.Linear(2, 1)))
    with pytest.raises(TypeError, match='AddingDoublingLinear has Doubling already'):
        mix_in(Doubling, module)
