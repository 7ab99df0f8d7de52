"""The terms with a given mean, such as that of a memory, against their formulas."""

import math

import pytest
import torch

from lt_mm.core.consistency import (
    Modulation,
    bernoulli_consistency,
    box_consistency,
    categorical_consistency,
    mask_consistency,
)
from tests import reference_losses as reference


def _kl(mean, p):
    return (torch.xlogy(mean, mean) - mean * p.log()).sum(dim=-1)


def _rows(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_target_of_replicas_in_the_batch_alone_gives_their_term():
    logits = _rows((5, 3)).requires_grad_()
    ids = torch.tensor([4, 0, 4, 0, 0])
    for term, p in (
        (categorical_consistency, logits.softmax(dim=1)),
        (bernoulli_consistency, logits.sigmoid()),
    ):
        mean = torch.stack([p[ids == each].mean(dim=0) for each in ids]).detach()
        expected = term(logits, ids, detach_mean=True)
        found = term(logits, torch.arange(5), target=mean)
        torch.testing.assert_close(found, expected)
        mine, theirs = (torch.autograd.grad(each, logits)[0] for each in (found, expected))
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_categorical_term_with_a_target(temperature):
    logits, target = _rows((4, 3)).requires_grad_(), _rows((4, 3), seed=1).softmax(dim=1)
    target[1] = math.nan
    ids = torch.tensor([0, 1, -1, 0])
    found = categorical_consistency(logits, ids, temperature, target=target, avg_factor=3)
    p = (logits / temperature).softmax(dim=1)
    expected = sum(_kl(target[k], p[k]) for k in (0, 3)) / 3
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    assert (gradient[[1, 2]] == 0).all()
    torch.testing.assert_close(gradient[0], ((p[0] - target[0]) / temperature / 3).detach())


def test_bernoulli_term_with_a_target():
    logits, target = _rows((3, 4)).requires_grad_(), _rows((3, 4), seed=1).sigmoid()
    target[2] = math.nan
    p = logits.sigmoid()
    each = _kl(torch.stack([target, 1 - target], -1), torch.stack([p, 1 - p], -1))[:2]
    found = bernoulli_consistency(logits, torch.tensor([0, 1, 2]), target=target)
    torch.testing.assert_close(found, each.sum() / 3)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient[:2], ((p - target)[:2] / 3).detach())
    assert (gradient[2] == 0).all()
    focal = Modulation(2, 2, 0.25, 0.75)
    found = bernoulli_consistency(logits, torch.arange(3), target=target, modulation=focal)
    torch.testing.assert_close(found, (each * focal.weights(target[:2])).sum() / 3)


def test_box_term_with_a_target():
    corners = _rows((4, 2)) * 20
    boxes = torch.cat([corners, corners + 10 + _rows((4, 2), 1).abs()], dim=1).requires_grad_()
    target = (boxes + _rows((4, 4), 2)).detach()
    target[0, 2] = target[3] = math.nan
    whole = torch.ones(4, 4, dtype=torch.bool)
    whole[1, 1] = False
    found = box_consistency(boxes, torch.arange(4), whole_sides=whole, target=target)
    expected = 0
    for row, axis in ((0, 1), (1, 0), (2, 0), (2, 1)):
        mean, own = (reference.gaussian(*each[row, axis::2]) for each in (target, boxes))
        expected = expected + torch.distributions.kl_divergence(mean, own).log1p() / 4
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(each, boxes)[0] for each in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_mask_term_with_a_target():
    logits, target = _rows((2, 3, 3)).requires_grad_(), _rows((2, 3, 3), 1).sigmoid()
    inside = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    target[0, 0] = math.nan
    found = mask_consistency(logits, inside, torch.arange(2), target=target)
    p = logits.sigmoid()
    each = _kl(torch.stack([target, 1 - target], -1), torch.stack([p, 1 - p], -1))
    shared = inside & ~target.isnan()
    expected = sum(row[there].mean() for row, there in zip(each, shared)) / 2
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all() and (gradient[~shared] == 0).all()


@pytest.mark.parametrize('term', [categorical_consistency, bernoulli_consistency, box_consistency])
@pytest.mark.parametrize('bad', [math.nan, math.inf, 3e38])
def test_a_first_visit_adds_nothing_and_has_a_graph(term, bad):
    predictions = torch.tensor([[1.0, 2.0, 3.0, 4.0], [bad, 1, 2, 3]], requires_grad=True)
    target = torch.full((2, 4), math.nan)
    found = term(predictions, torch.arange(2), target=target)
    found.backward()
    assert found == 0 and (predictions.grad == 0).all()


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r'the target has shape \(2, 2\)'):
        categorical_consistency(torch.zeros(2, 3), torch.arange(2), target=torch.zeros(2, 2))
