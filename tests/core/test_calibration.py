"""Calibration error, temperature scaling, and the KL that is left after it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_mm.core.measures.agreement import group_kl
from lt_mm.core.measures.calibration import calibrating_temperature, calibration_error, tempered

seeds = st.integers(0, 10**6)


def made(seed, num=40, classes=5, sharpness=2.0):
    """Probabilities (num, classes), and labels of which more than a guess are right."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(num, classes, generator=generator, dtype=torch.float64)
    right = torch.rand(num, generator=generator) < 0.6
    others = torch.randint(classes, (num,), generator=generator)
    labels = torch.where(right, logits.argmax(dim=1), others)
    labels[0] = logits[0].argmin()  # at least one is wrong, so that a temperature fits
    return logits.softmax(dim=1), labels


def naive_nll(rows, labels, temperature):
    total = 0.0
    for row, label in zip(rows, labels):
        powers = [p ** (1 / temperature) for p in row]
        total -= math.log(powers[label] / math.fsum(powers))
    return total / len(rows)


def test_tempered_probabilities_are_powers():
    p, _ = made(3)
    for temperature in (0.5, 1.0, 1.7):
        expected = [
            [q ** (1 / temperature) / math.fsum(r ** (1 / temperature) for r in row) for q in row]
            for row in p.tolist()
        ]
        torch.testing.assert_close(tempered(p, temperature), torch.tensor(expected).double())
    certain = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert torch.isfinite(tempered(certain, 0.1)).all()


@given(seeds)
def test_no_other_temperature_makes_the_labels_more_likely(seed):
    p, labels = made(seed)
    found = calibrating_temperature(p, labels)
    least = naive_nll(p.tolist(), labels.tolist(), found)
    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert least < naive_nll(p.tolist(), labels.tolist(), found * factor) + 1e-12


@given(seeds, st.floats(0.4, 3.0))
def test_confidence_of_a_model_makes_no_difference_after_it(seed, temperature):
    """A softened model has the KL of the sharp one at their own calibrating temperatures."""
    p, labels = made(seed)
    ids = torch.arange(len(p)) // 4
    best = calibrating_temperature(p, labels)
    softened = tempered(p, temperature)
    own = calibrating_temperature(softened, labels)
    assert own == pytest.approx(best / temperature, rel=1e-6)
    torch.testing.assert_close(
        group_kl(tempered(softened, own), ids), group_kl(tempered(p, best), ids), rtol=1e-5, atol=0
    )


def test_temperature_of_a_known_case():
    """Of three predictions with 0.9 two are right: 2/3 is the probability that fits."""
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 0])
    found = calibrating_temperature(p, labels)
    assert found == pytest.approx(math.log(9) / math.log(2), rel=1e-6)
    torch.testing.assert_close(tempered(p, found)[0], torch.tensor([2 / 3, 1 / 3]).double())


def test_nothing_fits_where_all_or_none_are_right():
    p, _ = made(1)
    assert calibrating_temperature(p, p.argmax(dim=1)) is None
    assert calibrating_temperature(p, p.argmin(dim=1)) is None
    assert calibrating_temperature(torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1])) is None
    assert calibrating_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_error_is_that_of_the_naive_twin(rows):
    expected = 0.0
    for k in range(15):
        own = [(p, hit) for p, hit in rows if k / 15 < p <= (k + 1) / 15 or (k == 0 and p == 0)]
        if own:
            gap = sum(p for p, _ in own) / len(own) - sum(hit for _, hit in own) / len(own)
            expected += abs(gap) * len(own) / len(rows)
    confidences = torch.tensor([p for p, _ in rows], dtype=torch.float64)
    correct = torch.tensor([hit for _, hit in rows])
    assert calibration_error(confidences, correct) == pytest.approx(expected, abs=1e-12)


def test_calibration_of_nothing_and_of_what_is_no_confidence_is_refused():
    for confidences in ([], [1.5], [math.nan]):
        with pytest.raises(ValueError, match='expected at least one'):
            calibration_error(torch.tensor(confidences), torch.ones(len(confidences)))
