"""The class term is as strong as the stock loss: weights of classes, and of predictions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.consistency import (
    Modulation,
    bernoulli_consistency,
    categorical_consistency,
    positives_each,
)
from tests import reference_losses as reference

FOCAL = Modulation(2.0, 2.0, 0.25, 0.75)
gammas, alphas = st.floats(0, 5), st.floats(0, 2)
modulations = st.builds(Modulation, gammas, gammas, alphas, alphas)


def relative_gradient(logit, modulation, there):
    """The derivative of the loss of one class over that of its cross entropy, by autograd."""
    x = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    p, log_p = x.sigmoid(), torch.nn.functional.logsigmoid(x if there else -x)
    gamma = modulation.gamma_pos if there else modulation.gamma_neg
    alpha = modulation.alpha_pos if there else modulation.alpha_neg
    focal = -alpha * ((1 - p) if there else p) ** gamma * log_p
    (of_focal,) = torch.autograd.grad(focal, x)
    return float(of_focal / (p.detach() - float(there)))


def naive_weight(logit, modulation):
    mean = float(torch.tensor(logit, dtype=torch.float64).sigmoid())
    there, absent = (relative_gradient(logit, modulation, each) for each in (True, False))
    return mean * there + (1 - mean) * absent


class TestModulation:
    @settings(max_examples=50, deadline=None)
    @given(modulation=modulations, logit=st.floats(-12, 12))
    def test_is_the_gradient_of_the_loss_expected_under_the_mean(self, modulation, logit):
        mean = torch.tensor(logit, dtype=torch.float64).sigmoid()
        found = float(modulation.weights(mean))
        assert found == pytest.approx(naive_weight(logit, modulation), rel=1e-6, abs=1e-9)

    def test_without_exponents_it_is_the_cross_entropy(self):
        mean = torch.linspace(0, 1, 11)
        torch.testing.assert_close(Modulation(0, 0).weights(mean), torch.ones(11))

    def test_classes_that_are_certain_weigh_little(self):
        weights = FOCAL.weights(torch.tensor([0.0, 1e-3, 0.5, 1 - 1e-3, 1.0]))
        assert weights.isfinite().all() and (weights >= 0).all()
        assert weights[1] < weights[2] / 100 and weights[3] < weights[2] / 100

    def test_no_gradient_flows_through_the_weights(self):
        mean = torch.rand(3, requires_grad=True)
        assert not FOCAL.weights(mean).requires_grad


def naive_term(logits, ids, modulation, detach_mean, avg_factor):
    """Row after row and class after class."""
    total = 0 * logits.sum()
    p = logits.sigmoid()
    for i in range(len(logits)):
        alike = reference.positives(ids, i)
        if not alike:
            continue
        for c in range(logits.shape[1]):
            mean = sum(p[j, c] for j in alike) / len(alike)
            weight = naive_weight(float(mean.detach().logit()), modulation)
            mean = mean.detach() if detach_mean else mean
            kl = mean * (mean / p[i, c]).log() + (1 - mean) * ((1 - mean) / (1 - p[i, c])).log()
            total = total + weight * kl
    return total / avg_factor


class TestModulatedTerm:
    @pytest.mark.parametrize('detach_mean', [False, True])
    @settings(max_examples=15, deadline=None)
    @given(modulation=modulations, seed=st.integers(0, 99))
    def test_against_a_naive_loop(self, detach_mean, modulation, seed):
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(6, 3, dtype=torch.float64, generator=generator)
        ids = torch.tensor([4, -1, 4, 0, 0, 0])
        results = []
        for term in (bernoulli_consistency, naive_term):
            leaf = logits.clone().requires_grad_()
            options = dict(modulation=modulation, detach_mean=detach_mean, avg_factor=3.0)
            value = term(leaf, ids, **options)
            value.backward()
            results.append((value.detach(), leaf.grad))
        for mine, theirs in zip(*results):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-9)

    def test_without_exponents_it_is_the_plain_term(self):
        logits, ids = torch.randn(5, 4), torch.tensor([0, 0, 1, 1, 1])
        torch.testing.assert_close(
            bernoulli_consistency(logits, ids, modulation=Modulation(0, 0)),
            bernoulli_consistency(logits, ids),
        )

    def test_no_gradient_where_replicas_agree(self):
        logits = torch.randn(1, 4).expand(3, 4).clone().requires_grad_()
        bernoulli_consistency(logits, torch.zeros(3, dtype=int), modulation=FOCAL).backward()
        torch.testing.assert_close(logits.grad, torch.zeros(3, 4), rtol=0, atol=1e-7)

    def test_classes_that_all_replicas_deny_hardly_count(self):
        """80 of them make up most of the plain sum, and little of the modulated one."""
        generator = torch.Generator().manual_seed(0)
        own = torch.tensor([[2.0], [-0.5]])
        denied = -6 + torch.randn(2, 80, generator=generator)
        logits, ids = torch.cat([own, denied], dim=1), torch.zeros(2, dtype=int)

        def share(**options):
            of_denied = bernoulli_consistency(denied, ids, **options)
            return of_denied / bernoulli_consistency(logits, ids, **options)

        assert share() > 0.3
        assert share(modulation=FOCAL) < 0.05


def naive_positives_each(instances, replicas, paired):
    cells = [(*instance, replica) for instance, replica in zip(instances, replicas)]
    compared = {cell for cell, own in zip(cells, paired) if own}
    return sum(cell in compared for cell in cells) / max(sum(paired), 1)


class TestPositivesEach:
    @settings(max_examples=50, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2), st.booleans()),
            max_size=20,
        )
    )
    def test_against_a_naive_count(self, rows):
        instances = [row[:2] for row in rows]
        replicas, paired = [row[2] for row in rows], [row[3] for row in rows]
        found = positives_each(
            torch.tensor(instances, dtype=torch.int64).reshape(-1, 2),
            torch.tensor(replicas, dtype=torch.int64),
            torch.tensor(paired, dtype=torch.bool),
        )
        assert float(found) == pytest.approx(naive_positives_each(instances, replicas, paired))

    def test_all_compared_stand_for_themselves(self):
        instances = torch.tensor([[3, 0], [3, 0], [3, 1]])
        found = positives_each(instances, torch.tensor([0, 1, 1]), torch.ones(3, dtype=bool))
        assert found == 1

    def test_the_nearest_stands_for_its_replica(self):
        instances = torch.tensor([[3, 0]] * 6 + [[5, 0]])
        paired = torch.tensor([True, False, False, False, True, False, False])
        replicas = torch.tensor([0, 0, 0, 0, 1, 1, 2])
        assert positives_each(instances, replicas, paired) == 3


class TestGradientThroughTheMean:
    """What ``detach_mean`` is for: a pull that does not grow with the logits."""

    @staticmethod
    def norms(term, scale, detach_mean):
        """Largest norm of the gradient of a prediction, of 1000 pairs with 10 classes."""
        generator = torch.Generator().manual_seed(0)
        logits = (scale * torch.randn(2000, 10, generator=generator)).requires_grad_()
        ids = torch.arange(2000) // 2
        term(logits, ids, detach_mean=detach_mean, avg_factor=1.0).backward()
        return logits.grad.norm(dim=1).max()

    @pytest.mark.parametrize('scale', [1, 5, 50, 500])
    def test_detached_it_is_bounded(self, scale):
        """For two replicas it is |p - p'| / 2, at most 1 / sqrt(2) for a softmax."""
        assert self.norms(categorical_consistency, scale, True) <= 0.5**0.5 + 1e-5
        assert self.norms(bernoulli_consistency, scale, True) <= 0.5 * 10**0.5

    @pytest.mark.parametrize('term', [categorical_consistency, bernoulli_consistency])
    def test_through_the_mean_it_grows_with_the_logits(self, term):
        """Until log-probabilities count as -100: then it is p (1 - p) times about 50 a class."""
        small, large, huge = (self.norms(term, scale, False) for scale in (1, 50, 500))
        assert small < 1 and large > 10 and max(large, huge) < 0.25 * 50 * 10**0.5
