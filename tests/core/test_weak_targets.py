"""Targets from weak copies, against a loop."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency
from lt_mm.core.weak_targets import confident_probabilities, weak_targets

# Group ids; in each group at most one member is weak.
groups = st.lists(st.integers(-1, 4), min_size=1, max_size=12)


def with_weak(ids, chosen):
    """Which members are weak: for each group the one of a number, or none."""
    weak = [False] * len(ids)
    for group, number in enumerate(chosen):
        members = [row for row, own in enumerate(ids) if own == group]
        if number < len(members):
            weak[members[number]] = True
    return weak


@settings(deadline=None, max_examples=150)
@given(
    ids=groups,
    chosen=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    width=st.integers(1, 3),
    unpaired=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_each_gets_the_values_of_the_weak_one(ids, chosen, width, unpaired):
    weak = with_weak(ids, chosen)
    # Of those that pair with nothing, any number may be weak.
    weak = [own or (ids[row] < 0 and unpaired[row]) for row, own in enumerate(weak)]
    values = torch.arange(float(len(ids) * width)).view(-1, width).requires_grad_()
    found = weak_targets(values, torch.tensor(ids), torch.tensor(weak))
    assert not found.requires_grad and found.shape == values.shape
    for row, group in enumerate(ids):
        partners = [
            other for other, own in enumerate(ids) if own == group and weak[other] and group >= 0
        ]
        if partners and not weak[row]:
            assert torch.equal(found[row], values[partners[0]])
        else:
            assert found[row].isnan().all()


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=6),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    threshold=st.sampled_from([0.0, 0.5, 0.9]),
    sigmoid=st.booleans(),
)
def test_confident_probabilities(logits, temperature, threshold, sigmoid):
    found = confident_probabilities(torch.tensor(logits), sigmoid, temperature, threshold)
    for row, own in zip(found.tolist(), torch.tensor(logits).double().tolist()):
        plain, sharp = activated(own, 1.0, sigmoid), activated(own, temperature, sigmoid)
        if abs(max(plain) - threshold) < 1e-9:
            continue
        if max(plain) >= threshold:
            assert all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(row, sharp))
        else:
            assert all(math.isnan(value) for value in row)


def activated(logits, temperature, sigmoid):
    if sigmoid:
        return [1 / (1 + math.exp(-z / temperature)) for z in logits]
    total = sum(math.exp((z - max(logits)) / temperature) for z in logits)
    return [math.exp((z - max(logits)) / temperature) / total for z in logits]


def test_the_term_pulls_towards_the_target_alone():
    """A sharpened target makes even equal predictions surer."""
    for consistency, sigmoid in ((categorical_consistency, False), (bernoulli_consistency, True)):
        logits = torch.tensor([[2.0, 0.0, -1.0]]).repeat(2, 1).requires_grad_()
        ids, weak = torch.tensor([0, 0]), torch.tensor([True, False])
        sharp = confident_probabilities(logits.detach(), sigmoid, 0.5, 0.0)
        term = consistency(logits, ids, target=weak_targets(sharp, ids, weak))
        term.backward()
        assert term > 0 and not logits.grad[0].any()
        assert logits.grad[1, 0] < 0 < logits.grad[1, 2]
