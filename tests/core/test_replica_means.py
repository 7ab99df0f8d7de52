"""Means of replicas against naive twins, and the share of a term between replicas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.consistency import (
    bernoulli_consistency,
    categorical_consistency,
    mask_consistency,
    non_negative,
    replica_cells,
    side_consistency,
)
from lt_mm.core.pairing import distance_to_annotations
from tests import reference_losses as twin

_some = settings(max_examples=40, deadline=None)
members = st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=14)


def _made(rows, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = 4 * torch.randn(len(rows), *shape, generator=generator, dtype=torch.float64)
    return values.requires_grad_()


def _columns(rows):
    groups, replicas = ([row[k] for row in rows] for k in (0, 1))
    return groups, replicas, replica_cells(torch.tensor(groups), torch.tensor(replicas))


def _same_with_gradients(found, expected, leaf):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    mine, theirs = (
        torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)[0]
        for value in (found, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


@_some
@given(rows=members)
def test_one_of_each_cell(rows):
    groups, replicas, cells = _columns(rows)
    assert cells.one_each(torch.tensor(groups)).tolist() == twin.one_each(groups, replicas)


@_some
@given(rows=members)
def test_means_of_rows(rows):
    groups, replicas, cells = _columns(rows)
    values = _made(rows, 3)
    paired = torch.tensor(groups) >= 0
    expected = twin.averaged(values, groups, replicas)
    _same_with_gradients(cells.mean(values)[paired], expected[paired], values)


@pytest.mark.parametrize('sigmoid', [True, False])
@_some
@given(rows=members, temperature=st.sampled_from([0.5, 1.0, 3.0]))
def test_terms_between_means(sigmoid, rows, temperature):
    groups, replicas, cells = _columns(rows)
    logits, ids = _made(rows, 4), torch.tensor(groups)
    compared = twin.one_each(groups, replicas)
    term = bernoulli_consistency if sigmoid else categorical_consistency
    naive = twin.bernoulli if sigmoid else twin.categorical
    found = term(cells.mean_logits(logits, sigmoid, temperature), cells.one_each(ids), temperature)
    means = twin.mean_logits(logits, sigmoid, groups, replicas, temperature)
    _same_with_gradients(found, naive(means, compared, temperature), logits)
    # Replacing each prediction by its replica's mean leaves a part of the term of all.
    between = term(cells.mean_logits(logits, sigmoid, temperature), ids, temperature)
    assert -1e-12 <= between <= term(logits, ids, temperature) + 1e-12
    if len(set(replicas)) == 1:
        torch.testing.assert_close(between, torch.zeros_like(between), atol=1e-9, rtol=0)


def test_means_of_probabilities_that_no_float_holds():
    logits = torch.tensor([[0.0, -200.0], [0.0, -202.0]], requires_grad=True)
    cells = replica_cells(torch.tensor([0, 0]), torch.tensor([5, 5]))
    for sigmoid in (False, True):
        means = cells.mean_logits(logits, sigmoid)
        difference = torch.logsumexp(torch.tensor([-200.0, -202.0]), 0) - torch.log(torch.tensor(2))
        torch.testing.assert_close(means[0, 1], difference, rtol=1e-6, atol=0)
        (gradient,) = torch.autograd.grad(means[0, 1], logits)
        assert gradient.isfinite().all() and (gradient[:, 1] > 0.1).all()


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf'), 3e38])
def test_unpaired_predictions_may_be_anything(bad):
    logits = torch.tensor([[1.0, 2.0], [0.0, 1.0], [bad, 1.0]], requires_grad=True)
    cells = replica_cells(torch.tensor([0, 0, -1]), torch.tensor([1, 2, 1]))
    for sigmoid in (False, True):
        means = cells.mean_logits(logits, sigmoid)
        (gradient,) = torch.autograd.grad(means[:2].square().sum(), logits)
        assert means.isfinite().all() and gradient.isfinite().all() and (gradient[2] == 0).all()


@_some
@given(rows=members, seed=st.integers(0, 3))
def test_means_of_masks(rows, seed):
    groups, replicas, cells = _columns(rows)
    masks = _made(rows, 2, 3)
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(len(rows), 2, 3, generator=generator) < 0.7
    means, there = cells.mean_mask_logits(masks, inside)
    expected, seen = list(masks.unbind()), inside.clone()
    for cell in twin.cells(groups, replicas):
        seen[cell] = inside[cell].any(dim=0)
        shares = inside[cell].double()
        mean = (shares * masks[cell].sigmoid()).sum(0) / shares.sum(0).clamp(min=1)
        for i in cell:
            expected[i] = torch.where(shares.sum(0) > 0, mean, 0.5).logit()
    compared = twin.one_each(groups, replicas)
    found = mask_consistency(means, there, cells.one_each(torch.tensor(groups)))
    naive = twin.masks(torch.stack(expected), seen, compared)
    _same_with_gradients(found, naive, masks)


@_some
@given(rows=members)
def test_means_of_side_distributions(rows):
    groups, replicas, cells = _columns(rows)
    logits = _made(rows, 4, 3)
    starts = _made(rows, 4, 1, seed=1).detach()
    positions = starts + 2.0 * torch.arange(3, dtype=torch.float64)
    ids = torch.tensor(groups)
    found = side_consistency(logits, positions, ids, cells=cells, compared_ids=cells.one_each(ids))
    naive = twin.sides(logits, positions, groups, replicas=replicas)
    _same_with_gradients(found, naive, logits)


box = st.tuples(*[st.floats(-20, 60, width=32)] * 2, *[st.floats(0, 50, width=32)] * 2)


@_some
@given(boxes=st.lists(st.tuples(box, box), min_size=1, max_size=8))
def test_distance_to_annotations(boxes):
    corners = [
        [torch.tensor([x, y, x + w, y + h], dtype=torch.float64) for x, y, w, h in pair]
        for pair in boxes
    ]
    found = distance_to_annotations(*(torch.stack(column) for column in zip(*corners)))
    expected = torch.tensor([twin.distance(*pair) for pair in corners], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert ((found >= 0) & (found <= 2)).all()


def test_a_box_that_is_not_finite_is_the_farthest():
    boxes = torch.tensor([[0.0, 0, 10, 10], [float('nan')] * 4, [500.0, 500, 510, 510]])
    distances = distance_to_annotations(boxes, torch.tensor([[0.0, 0, 10, 10]] * 3))
    assert distances.argsort().tolist() == [0, 2, 1]
    given = torch.tensor([True, False, False])
    again = distance_to_annotations(boxes, torch.tensor([[0.0, 0, 10, 10]] * 3), given)
    assert again.argsort().tolist() == [2, 1, 0]


@pytest.mark.parametrize('value', [-0.0, -1e-9, 0.0, 0.25])
def test_terms_are_not_negative_and_keep_their_gradient(value):
    leaf = torch.tensor(value, requires_grad=True)
    term = non_negative(leaf)
    term.backward()
    assert leaf.grad == 1
    found = float(term.detach())
    assert found == max(value, 0) and not str(found).startswith('-')
