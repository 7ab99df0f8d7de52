"""The consistency term: value, gradient, extremes, invariances and cost."""

import itertools
import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_mm.core import geometry, pairing
from lt_mm.core.consistency import (
    BIN_FLOOR,
    MIN_BOX_SIDE,
    bernoulli_consistency,
    box_consistency,
    box_divergences,
    categorical,
    categorical_consistency,
    compared_axes,
    compared_sides,
    logits_of_both,
    mask_consistency,
    side_consistency,
)
from tests import reference_losses as reference

Term = namedtuple('Term', 'name ours naive draw')
LARGEST, SMALLEST = 2**63 - 1, -(2**63)

_some = settings(max_examples=20, deadline=None)


def _draw_logits(n, num_classes, generator):
    return 3 * torch.randn(n, num_classes, dtype=torch.float64, generator=generator)


def _draw_boxes(n, _, generator):
    """Boxes of 5 to 60 pixels in the first 160: float32 keeps 1e-7 of their sides."""
    draw = torch.rand(n, 4, dtype=torch.float64, generator=generator)
    corner, sides = 100 * draw[:, :2], 5 + 55 * draw[:, 2:]
    return torch.cat([corner, corner + sides], dim=1)


def _as_masks(logits, ids, **options):
    """One row of pixels a mask, all of them inside."""
    masks = logits[:, None]
    return mask_consistency(masks, torch.ones_like(masks, dtype=torch.bool), ids, **options)


def _as_masks_naive(logits, ids, **options):
    return reference.bernoulli(logits, ids, **options) / logits.shape[1]


def _as_sides(term):
    """The same logits for all four sides, all at the same positions."""

    def run(logits, ids, **options):
        sides = logits[:, None].expand(-1, 4, -1)
        positions = torch.arange(sides.shape[2], device=sides.device).double()
        return term(sides, positions.expand(sides.shape), ids, **options)

    return run


CATEGORICAL = Term('categorical', categorical_consistency, reference.categorical, _draw_logits)
BERNOULLI = Term('bernoulli', bernoulli_consistency, reference.bernoulli, _draw_logits)
BOX = Term('box', box_consistency, reference.box, _draw_boxes)
MASK = Term('mask', _as_masks, _as_masks_naive, _draw_logits)
SIDE = Term('side', _as_sides(side_consistency), _as_sides(reference.sides), _draw_logits)

every_term = pytest.mark.parametrize(
    'term', [CATEGORICAL, BERNOULLI, BOX, MASK, SIDE], ids=lambda term: term.name
)
# Not the sides: their bins follow the predictions, outside of the gradient.
smooth_terms = pytest.mark.parametrize(
    'term', [CATEGORICAL, BERNOULLI, BOX, MASK], ids=lambda term: term.name
)
row_terms = pytest.mark.parametrize(
    'term', [CATEGORICAL, BERNOULLI, BOX], ids=lambda term: term.name
)
classifiers = pytest.mark.parametrize('term', [CATEGORICAL, BERNOULLI], ids=lambda term: term.name)
both_means = pytest.mark.parametrize('detach_mean', [False, True])

# Few values, so that groups form; huge ones, so that no id can serve as an index.
any_id = st.sampled_from([-5, -1, 0, 1, 2, 7, 2**40, LARGEST, SMALLEST])
some_ids = st.integers(0, 40).flatmap(lambda n: st.lists(any_id, min_size=n, max_size=n))


def _ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def _predictions(term, n, num_classes=4, seed=0):
    return term.draw(n, num_classes, torch.Generator().manual_seed(seed))


def _value_and_gradient(function, predictions, *args, **options):
    leaf = predictions.clone().requires_grad_()
    value = function(leaf, *args, **options)
    assert value.shape == ()
    value.backward()
    return value.detach(), leaf.grad


def _assert_equals_reference(term, predictions, group_ids, rtol, atol, **options):
    """Value and gradient, within rtol of the size of each, or atol."""
    ours = _value_and_gradient(term.ours, predictions, group_ids, **options)
    naive = _value_and_gradient(term.naive, predictions.double(), group_ids, **options)
    assert ours[0].dtype == predictions.dtype
    for mine, theirs in zip(ours, naive):
        size = theirs.abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=atol + rtol * size)


class TestAgainstReference:
    @smooth_terms
    @both_means
    @_some
    @given(
        ids=some_ids,
        num_classes=st.integers(1, 20),
        seed=st.integers(0, 999),
        avg_factor=st.none() | st.floats(0.5, 100),
    )
    def test_float64(self, term, detach_mean, ids, num_classes, seed, avg_factor):
        _assert_equals_reference(
            term,
            _predictions(term, len(ids), num_classes, seed),
            _ids(*ids),
            rtol=1e-10,
            atol=1e-12,
            detach_mean=detach_mean,
            avg_factor=avg_factor,
        )

    @smooth_terms
    @both_means
    @_some
    @given(ids=some_ids, num_classes=st.integers(1, 20), seed=st.integers(0, 999))
    def test_float32(self, term, detach_mean, ids, num_classes, seed):
        predictions = _predictions(term, len(ids), num_classes, seed).float()
        _assert_equals_reference(
            term, predictions, _ids(*ids), rtol=1e-5, atol=1e-6, detach_mean=detach_mean
        )

    @classifiers
    @both_means
    @pytest.mark.parametrize('temperature', [0.05, 0.5, 2, 100])
    def test_temperature(self, term, detach_mean, temperature):
        _assert_equals_reference(
            term,
            _predictions(term, 9),
            _ids(3, 3, 0, 0, 0, -1, -1, 3, 8),
            rtol=1e-10,
            atol=1e-12,
            temperature=temperature,
            detach_mean=detach_mean,
        )

    @smooth_terms
    @pytest.mark.parametrize(
        'dtype', [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    )
    def test_types_of_ids(self, term, dtype):
        ids = torch.tensor([100, 0, 100, 3, 0, 0], dtype=dtype)
        _assert_equals_reference(term, _predictions(term, 6), ids, rtol=1e-10, atol=0)

    @smooth_terms
    def test_one_large_group(self, term):
        _assert_equals_reference(
            term,
            _predictions(term, 40),
            _ids(*[SMALLEST + 1] * 5, *[LARGEST] * 35),
            rtol=1e-10,
            atol=0,
        )

    def test_small_and_inverted_sides_count_as_the_smallest_side(self):
        boxes = torch.tensor([[0, 0, 0, 3], [1, 1, 1.004, 2], [2, 5, 1, 3]]).double()
        _assert_equals_reference(BOX, boxes, _ids(0, 0, 0), rtol=1e-10, atol=0)
        assert MIN_BOX_SIDE == reference.MIN_BOX_SIDE


class TestClosedForm:
    """The gradient of the softmax term is written by hand, and made block by block."""

    @both_means
    @pytest.mark.parametrize('counted', [True, False])
    @pytest.mark.parametrize('entries', [1, 8, 12, 1000])
    @_some
    @given(ids=some_ids, seed=st.integers(0, 99), temperature=st.sampled_from([0.3, 1, 4]))
    def test_any_blocks(self, detach_mean, counted, entries, ids, seed, temperature):
        """Of one row to all; with and without asking the device for the groups."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(categorical, '_CPU_BLOCK', entries)
            patch.setattr(pairing, '_counting_is_free', lambda tensor: counted)
            _assert_equals_reference(
                CATEGORICAL,
                _predictions(CATEGORICAL, len(ids), seed=seed),
                _ids(*ids),
                rtol=1e-10,
                atol=1e-12,
                detach_mean=detach_mean,
                temperature=temperature,
            )

    @both_means
    @pytest.mark.parametrize('temperature', [0.5, 3])
    def test_gradcheck_with_temperature(self, detach_mean, temperature):
        """A constant mean is that of the same logits, held fast."""
        logits, ids = _predictions(CATEGORICAL, 7, 3), _ids(0, 5, 0, -1, 5, 5, 9)
        if not detach_mean:
            assert torch.autograd.gradcheck(
                lambda x: categorical_consistency(x, ids, temperature), logits.requires_grad_()
            )
            return
        p = (logits / temperature).softmax(dim=1)
        mean = torch.stack([p[ids == i].mean(dim=0) for i in ids])
        leaf = logits.clone().requires_grad_()
        log_p = (leaf / temperature).log_softmax(dim=1)
        paired = torch.tensor([i in (0, 5) for i in ids.tolist()])
        (-(mean * log_p).sum(dim=1)[paired].sum() / 7).backward()
        _, gradient = _value_and_gradient(
            categorical_consistency, logits, ids, temperature, detach_mean=True
        )
        torch.testing.assert_close(gradient, leaf.grad)

    def test_a_second_backward_pass_adds_the_same(self):
        logits = _predictions(CATEGORICAL, 6).requires_grad_()
        value = categorical_consistency(logits, _ids(0, 0, 1, 1, 1, -1))
        value.backward(retain_graph=True)
        once = logits.grad.clone()
        (3 * value).backward()
        torch.testing.assert_close(logits.grad, 4 * once)

    def test_twice_in_one_graph_under_autocast(self):
        logits = _predictions(CATEGORICAL, 6).float().requires_grad_()
        ids, other_ids = _ids(0, 0, 1, 1, 1, -1), _ids(0, 1, 0, 1, 2, 2)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            total = categorical_consistency(logits, ids) + 2 * categorical_consistency(
                logits, other_ids
            )
        total.backward()
        plain = logits.detach()
        _, first = _value_and_gradient(categorical_consistency, plain, ids)
        _, second = _value_and_gradient(categorical_consistency, plain, other_ids)
        torch.testing.assert_close(logits.grad, first + 2 * second)

    def test_no_second_derivative(self):
        logits = _predictions(CATEGORICAL, 4).requires_grad_()
        value = categorical_consistency(logits, _ids(0, 0, 1, 1))
        with pytest.raises(NotImplementedError, match='create_graph=True: leave'):
            torch.autograd.grad(value, logits, create_graph=True)

    @both_means
    def test_impossible_and_huge_logits(self, detach_mean):
        """-inf is a class that nobody may predict; all finite numbers are allowed."""
        logits = torch.tensor(
            [[1.0, 0, -math.inf], [0, 1, -math.inf], [3e38, -3e38, 0], [-3e38, 3e38, 0]]
        )
        value, gradient = _value_and_gradient(
            categorical_consistency, logits, _ids(0, 0, 1, 1), 0.1, detach_mean=detach_mean
        )
        # Of the second pair, each rules out what the other one is sure of.
        first, _ = _value_and_gradient(categorical_consistency, logits[:2, :2], _ids(0, 0), 0.1)
        assert value == pytest.approx((first + 100 / 2 - math.log(2)) / 2)
        assert gradient.isfinite().all() and not gradient[:2, 2].any()

    @classifiers
    @both_means
    @pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
    def test_a_class_that_one_replica_rules_out(self, term, dtype, detach_mean):
        """As if that replica had a log-probability of -100: bounded, in value and gradient."""
        rows = [[0.5, 2, -1], [0, 0, -math.inf], [1, 1, 1.5]]
        logits, ids = torch.tensor(rows, dtype=dtype), _ids(4, 4, 4)
        value, gradient = _value_and_gradient(term.ours, logits, ids, detach_mean=detach_mean)
        far = logits.double().clamp(min=-1e3)
        expected, expected_gradient = _value_and_gradient(
            term.naive, far, ids, detach_mean=detach_mean
        )
        assert value.item() == pytest.approx(expected.item(), rel=1e-5) and value < 100
        assert gradient.isfinite().all() and gradient.abs().max() < 10
        reached = torch.isfinite(logits)
        torch.testing.assert_close(
            gradient[reached].double(), expected_gradient[reached], rtol=2e-3, atol=1e-5
        )
        mean = logits.double().softmax(dim=1) if term is CATEGORICAL else logits.double().sigmoid()
        given, _ = _value_and_gradient(term.ours, logits, ids, target=mean.mean(dim=0).repeat(3, 1))
        assert given.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_nan_stays_in_its_group(self):
        logits = _predictions(CATEGORICAL, 4)
        logits[0, 1] = math.nan
        value, gradient = _value_and_gradient(categorical_consistency, logits, _ids(0, 0, 1, 1))
        assert value.isnan()
        assert gradient[:2].isnan().all() and gradient[2:].isfinite().all()

    def test_no_gradient_is_made_where_none_is_wanted(self):
        logits, ids = _predictions(CATEGORICAL, 4), _ids(0, 0, 1, 1)
        value = categorical_consistency(logits, ids)
        assert not value.requires_grad
        assert value == categorical_consistency(logits.requires_grad_(), ids)

    def test_peak_memory(self):
        """Beyond the logits, at most the gradient and as much again for the groups."""
        logits, ids = torch.randn(4096, 500, requires_grad=True), torch.arange(4096) // 2
        with torch.profiler.profile(profile_memory=True) as profiler:
            torch.autograd.grad(categorical_consistency(logits, ids), logits)
        records = [
            event
            for event in profiler.profiler.kineto_results.events()
            if event.name() == '[memory]'
        ]
        held = np.cumsum(
            [record.nbytes() for record in sorted(records, key=lambda record: record.start_ns())]
        )
        assert 2 * logits.nbytes <= held.max() < 2.5 * logits.nbytes


class TestByHand:
    """Examples in which D_KL(mean || p) and D_KL(p || mean) are far apart."""

    def test_categorical(self):
        logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log().double()
        value, _ = _value_and_gradient(categorical_consistency, logits, _ids(4, 4))
        # The mean is (1/2, 1/2): 1/2 log(5/9) + 1/2 log 5. The other way: 0.368.
        assert value.item() == pytest.approx(math.log(5 / 3), rel=1e-6)

    def test_bernoulli_sums_the_classes(self):
        p = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).double()
        value, _ = _value_and_gradient(bernoulli_consistency, p.logit(), _ids(4, 4))
        assert value.item() == pytest.approx(2 * math.log(5 / 3), rel=1e-6)

    def test_box(self):
        boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 6, 2]]).double()
        value, _ = _value_and_gradient(box_consistency, boxes, _ids(4, 4))
        # Along x the mean has (mu, sigma) = (2, 2), the boxes (1, 1) and (3, 3).
        first = math.log(1 / 2) + (4 + 1) / 2 - 1 / 2
        second = math.log(3 / 2) + (4 + 1) / 18 - 1 / 2
        expected = (math.log(1 + first) + math.log(1 + second)) / 2
        assert value.item() == pytest.approx(expected, rel=1e-12)
        kls = box_divergences(boxes, _ids(4, 4))
        assert kls.tolist() == pytest.approx([first, second], rel=1e-12)

    def test_gradient_of_two_sigmoids(self):
        x = torch.tensor([[2.0], [-2.0]]).double()
        _, gradient = _value_and_gradient(bernoulli_consistency, x, _ids(0, 0), detach_mean=True)
        # d KL(m || sigmoid(x)) / dx = sigmoid(x) - m, with m = 1/2.
        expected = (torch.sigmoid(x) - 0.5) / 2
        torch.testing.assert_close(gradient, expected)

    @every_term
    def test_n_counts_all_predictions(self, term):
        predictions = _predictions(term, 8)
        two, _ = _value_and_gradient(term.ours, predictions[:2], _ids(0, 0))
        eight, _ = _value_and_gradient(term.ours, predictions, _ids(0, 0, *[-1] * 6))
        torch.testing.assert_close(two * 2 / 8, eight)


class TestGradient:
    @smooth_terms
    def test_gradcheck(self, term):
        predictions = _predictions(term, 7, 3).requires_grad_()
        ids = _ids(0, 5, 0, -1, 5, 5, 9)
        assert torch.autograd.gradcheck(lambda x: term.ours(x, ids), predictions)

    @every_term
    def test_detach_mean_changes_the_gradient_not_the_value(self, term):
        predictions, ids = _predictions(term, 6), _ids(0, 0, 0, 1, 1, 1)
        value, through = _value_and_gradient(term.ours, predictions, ids)
        same, constant = _value_and_gradient(term.ours, predictions, ids, detach_mean=True)
        assert value == same
        assert (through - constant).norm() > 0.05 * through.norm()

    @every_term
    @both_means
    def test_descent_brings_predictions_together(self, term, detach_mean):
        predictions, ids = _predictions(term, 4), _ids(0, 0, 0, 0)
        before, gradient = _value_and_gradient(term.ours, predictions, ids, detach_mean=detach_mean)
        step = predictions - 1e-4 * gradient / gradient.norm()
        assert term.ours(step, ids) < before


NO_PAIR = {
    'no prediction': _ids(),
    'one prediction': _ids(3),
    'nobody alike': _ids(0, 1, 2, LARGEST),
    'all unpaired': _ids(-1, -1, -1, SMALLEST, SMALLEST),
    # The mean of eleven thirds is rounded: their own divergence is not quite 0.
    'many unpaired': _ids(*[-1] * 11),
}


class TestNoPair:
    @every_term
    @both_means
    @pytest.mark.parametrize('ids', NO_PAIR.values(), ids=NO_PAIR)
    @pytest.mark.parametrize('fill', [None, 1e30, math.inf, math.nan])
    def test_zero_with_a_graph(self, term, detach_mean, ids, fill):
        predictions = _predictions(term, len(ids), 3).float()
        if fill is not None:
            predictions[:, 0] = fill
        value, gradient = _value_and_gradient(term.ours, predictions, ids, detach_mean=detach_mean)
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(predictions))

    @every_term
    @pytest.mark.parametrize('fill', [0.0, -7.0, 1e30, -math.inf, math.nan])
    def test_unpaired_rows_influence_nothing(self, term, fill):
        predictions = _predictions(term, 8).float()
        ids = _ids(0, -1, 2, 0, -1, 2, 9, SMALLEST)
        alone = torch.tensor([1, 4, 6, 7])
        value, gradient = _value_and_gradient(term.ours, predictions, ids)
        predictions[alone] = fill
        other_value, other_gradient = _value_and_gradient(term.ours, predictions, ids)
        assert value > 0
        assert torch.equal(value, other_value)
        assert torch.equal(gradient, other_gradient)
        assert not gradient[alone].any()

    @every_term
    def test_the_graph_ends_in_every_parameter(self, term):
        layer = torch.nn.Linear(3, 4)
        term.ours(layer(torch.randn(5, 3)), _ids(*[-1] * 5)).backward()
        assert all(
            torch.equal(parameter.grad, torch.zeros_like(parameter))
            for parameter in layer.parameters()
        )


EXTREME_LOGITS = {
    'opposite': [[1e4, -1e4, 0], [-1e4, 1e4, 0]],
    'alike': [[1e4, -1e4, 0], [1e4, -1e4, 0]],
    'all high': [[1e4, 1e4, 1e4], [1e4, 1e4, 1e4]],
    'all low': [[-1e4, -1e4, -1e4], [-1e4, -1e4, -1e4]],
    'high and low': [[1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]],
    'all equal': [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    'one-hot': [[1e4, 0, 0], [0, 1e4, 0], [0, 0, 1e4]],
    'just underflowing': [[0, -95, -110], [0, -110, -95], [0, -90, -80]],
}
DEGENERATE_BOXES = {
    'points': [[5, 5, 5, 5], [7, 7, 7, 7]],
    'one point': [[0, 0, 0, 0], [0, 0, 0, 0]],
    'point and box': [[5, 5, 5, 5], [0, 0, 900, 900]],
    'inverted': [[9, 9, 1, 1], [1, 1, 9, 9]],
    'lines': [[0, 0, 0, 8], [0, 0, 8, 0]],
    'far away': [[0, 0, 8, 8], [1e6, 1e6, 1e6, 1e6]],
}
EXTREMES = [
    pytest.param(term, rows, id=f'{term.name}-{name}')
    for term, cases in (
        (CATEGORICAL, EXTREME_LOGITS),
        (BERNOULLI, EXTREME_LOGITS),
        (BOX, DEGENERATE_BOXES),
    )
    for name, rows in cases.items()
]


class TestExtremes:
    @both_means
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize('term, rows', EXTREMES)
    def test_value_and_finite_gradient(self, term, rows, dtype, detach_mean):
        predictions = torch.tensor(rows, dtype=dtype)
        ids = _ids(*[6] * len(rows))
        value, gradient = _value_and_gradient(term.ours, predictions, ids, detach_mean=detach_mean)
        expected = term.naive(predictions, ids).item()
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert gradient.isfinite().all()

    @classifiers
    def test_masked_class(self, term):
        """A class that nobody may predict has the lowest logit, and no share in it."""
        logits = _predictions(term, 4).float()
        wide = torch.cat([logits, torch.full((4, 1), -1e4)], dim=1)
        ids = _ids(1, 1, 1, 1)
        value, gradient = _value_and_gradient(term.ours, logits, ids)
        masked_value, masked_gradient = _value_and_gradient(term.ours, wide, ids)
        torch.testing.assert_close(value, masked_value)
        torch.testing.assert_close(gradient, masked_gradient[:, :-1])
        assert not masked_gradient[:, -1].any()


class TestPrecision:
    @every_term
    @pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
    def test_computes_in_float32(self, term, dtype, autocast):
        narrow = _predictions(term, 9).to(dtype)
        ids = _ids(0, 0, 1, 1, 1, -1, 2, 0, 0)
        expected, expected_gradient = _value_and_gradient(term.ours, narrow.float(), ids)
        with torch.autocast('cpu', dtype=autocast, enabled=autocast is not None):
            value, gradient = _value_and_gradient(term.ours, narrow, ids)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        assert torch.equal(gradient, expected_gradient.to(dtype))

    @classifiers
    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize('rows', EXTREME_LOGITS.values(), ids=EXTREME_LOGITS)
    def test_extremes_in_half_precision(self, term, dtype, rows):
        narrow, ids = torch.tensor(rows, dtype=dtype), _ids(*[0] * len(rows))
        with torch.autocast('cpu', dtype=torch.bfloat16):
            value, gradient = _value_and_gradient(term.ours, narrow, ids)
        expected = term.naive(narrow.double(), ids).item()
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert gradient.isfinite().all()


class TestInvariances:
    @every_term
    @both_means
    @_some
    @given(ids=some_ids, seed=st.integers(0, 99))
    def test_order_of_the_predictions(self, term, detach_mean, ids, seed):
        predictions, ids = _predictions(term, len(ids), seed=seed), _ids(*ids)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        value, gradient = _value_and_gradient(term.ours, predictions, ids, detach_mean=detach_mean)
        moved_value, moved_gradient = _value_and_gradient(
            term.ours, predictions[order], ids[order], detach_mean=detach_mean
        )
        torch.testing.assert_close(value, moved_value)
        torch.testing.assert_close(gradient[order], moved_gradient)

    @every_term
    @_some
    @given(ids=st.lists(st.integers(-2, 5), max_size=30), data=st.data())
    def test_names_of_the_groups(self, term, ids, data):
        names = data.draw(st.lists(st.integers(0, LARGEST), min_size=6, max_size=6, unique=True))
        # Two negative ids may become one: neither pairs.
        renamed = [names[i] if i >= 0 else SMALLEST for i in ids]
        predictions = _predictions(term, len(ids))
        before = _value_and_gradient(term.ours, predictions, _ids(*ids))
        after = _value_and_gradient(term.ours, predictions, _ids(*renamed))
        torch.testing.assert_close(before, after)

    @every_term
    @_some
    @given(ids=some_ids, seed=st.integers(0, 99))
    def test_not_negative(self, term, ids, seed):
        predictions = _predictions(term, len(ids), seed=seed)
        paired = any(reference.positives(ids, i) for i in range(len(ids)))
        value, _ = _value_and_gradient(term.ours, predictions, _ids(*ids))
        assert value > 0 if paired else value == 0

    @every_term
    @both_means
    @pytest.mark.parametrize('size', [2, 3, 7])
    def test_zero_where_the_group_agrees(self, term, size, detach_mean):
        """The groups themselves may differ."""
        predictions = _predictions(term, 4).repeat_interleave(size, dim=0)
        ids = _ids(0, 1, 2, 3).repeat_interleave(size)
        value, gradient = _value_and_gradient(term.ours, predictions, ids, detach_mean=detach_mean)
        assert abs(value.item()) < 1e-14
        assert gradient.abs().max() < 1e-14

    @every_term
    @pytest.mark.parametrize('row', range(6))
    def test_positive_where_one_prediction_differs(self, term, row):
        predictions = _predictions(term, 2).repeat_interleave(3, dim=0)
        predictions[row, 1] += 0.01
        value, gradient = _value_and_gradient(term.ours, predictions, _ids(0, 0, 0, 1, 1, 1))
        assert value > 1e-9
        assert gradient.abs().max() > 1e-6

    @every_term
    @pytest.mark.parametrize('ids', [_ids(0, 0, 0, 0), _ids(0, 0, -1, -1)])
    def test_not_negative_in_float32_where_the_group_nearly_agrees(self, term, ids):
        """Rounding may take a zero below zero, by no more than its own size."""
        one = _predictions(term, 1).float()
        value, _ = _value_and_gradient(term.ours, one.expand(4, -1) * (1 + 1e-7), ids)
        assert abs(value.item()) < 1e-6

    def test_softmax_ignores_a_shift_of_its_logits(self):
        logits = _predictions(CATEGORICAL, 6)
        shifts = torch.linspace(-50, 50, 6).double()[:, None]
        ids = _ids(0, 0, 0, 1, 1, 1)
        torch.testing.assert_close(
            _value_and_gradient(categorical_consistency, logits + shifts, ids),
            _value_and_gradient(categorical_consistency, logits, ids),
        )

    def test_sigmoid_treats_yes_and_no_alike(self):
        logits, ids = _predictions(BERNOULLI, 6), _ids(0, 0, 0, 1, 1, -1)
        value, gradient = _value_and_gradient(bernoulli_consistency, logits, ids)
        mirrored = _value_and_gradient(bernoulli_consistency, -logits, ids)
        torch.testing.assert_close((value, -gradient), mirrored)

    @_some
    @given(
        scale=st.floats(0.1, 10),
        shift=st.floats(-500, 500),
        flips=st.sets(st.sampled_from([0, 1])),
        seed=st.integers(0, 99),
    )
    def test_box_term_ignores_scale_shift_and_flip_of_the_frame(self, scale, shift, flips, seed):
        boxes, ids = _predictions(BOX, 9, seed=seed), _ids(0, 0, 0, 1, 1, -1, 2, 2, 2)
        value, gradient = _value_and_gradient(box_consistency, boxes, ids)

        def moved(x):
            x = x * scale + shift * torch.tensor([1, -2, 1, -2])
            columns = [x[:, i] for i in range(4)]
            for axis in flips:
                columns[axis], columns[axis + 2] = (640 - columns[axis + 2], 640 - columns[axis])
            return torch.stack(columns, dim=1)

        frame_value, frame_gradient = _value_and_gradient(
            lambda x: box_consistency(moved(x), ids), boxes
        )
        torch.testing.assert_close(value, frame_value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, frame_gradient, rtol=1e-7, atol=1e-9)

    def test_box_term_does_not_ignore_the_scale_of_one_box(self):
        boxes, ids = _predictions(BOX, 3), _ids(0, 0, 0)
        scaled = torch.cat([boxes[:2], boxes[2:] * 1.5])
        before, _ = _value_and_gradient(box_consistency, boxes, ids)
        after, _ = _value_and_gradient(box_consistency, scaled, ids)
        assert abs(before - after) > 1e-3


few_ids = st.lists(st.sampled_from([-1, 0, 0, 3, 2**40]), min_size=1, max_size=6)


def _draw_masks(n, shape, seed, share=0.6):
    """Logits and which pixels are inside: (n, *shape) both."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, *shape, dtype=torch.float64, generator=generator)
    return logits, torch.rand(n, *shape, generator=generator) < share


class TestMasks:
    @both_means
    @_some
    @given(
        ids=few_ids,
        shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
        seed=st.integers(0, 999),
        temperature=st.sampled_from([0.3, 1, 4]),
        avg_factor=st.none() | st.floats(0.5, 100),
    )
    def test_equals_the_loop_over_pixels(
        self, detach_mean, ids, shape, seed, temperature, avg_factor
    ):
        logits, inside = _draw_masks(len(ids), shape, seed)
        options = dict(temperature=temperature, detach_mean=detach_mean, avg_factor=avg_factor)
        naive = _value_and_gradient(reference.masks, logits, inside, _ids(*ids), **options)
        ours = _value_and_gradient(mask_consistency, logits, inside, _ids(*ids), **options)
        torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-12)
        narrow = _value_and_gradient(
            mask_consistency, logits.float(), inside, _ids(*ids), **options
        )
        assert narrow[0].dtype == torch.float32
        torch.testing.assert_close(
            [part.double() for part in narrow], list(naive), rtol=1e-4, atol=1e-5
        )

    def test_by_hand(self):
        """0.9 against 0.1 is log(5/3) for both; see TestByHand. Alike is 0."""
        p = torch.tensor([[0.9, 0.9, 0.5], [0.1, 0.9, 0.3], [0.7, 0.2, 0.6]]).double()
        inside = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
        value, gradient = _value_and_gradient(
            mask_consistency, p.logit()[:, None], inside[:, None], _ids(4, 4, 4)
        )
        # Of two shared pixels one differs; the third mask adds 0, but counts in n.
        assert value.item() == pytest.approx(2 * math.log(5 / 3) / 2 / 3, rel=1e-6)
        assert gradient[:2, 0, 0].all()
        assert not gradient[:, 0, 2].any() and not gradient[2].any()

    def test_every_mask_has_its_own_number_of_pixels(self):
        """The first mask shares one pixel, the others two."""
        logits, _ = _draw_masks(3, (1, 2), seed=0)
        inside = torch.tensor([[[1, 0]], [[1, 1]], [[1, 1]]], dtype=torch.bool)
        value, _ = _value_and_gradient(mask_consistency, logits, inside, _ids(1, 1, 1))
        left = [reference.pixel_divergence(logits[:, 0, 0], i, False) for i in range(3)]
        right = [reference.pixel_divergence(logits[1:, 0, 1], i, False) for i in range(2)]
        expected = left[0] + (left[1] + right[0]) / 2 + (left[2] + right[1]) / 2
        assert value.item() == pytest.approx(expected.item() / 3, rel=1e-12)

    @both_means
    def test_pixels_that_nobody_shares_add_nothing(self, detach_mean):
        logits, _ = _draw_masks(3, (2, 3), seed=0)
        inside = torch.zeros(3, 2, 3, dtype=torch.bool)
        for row in range(3):
            inside[row, :, row] = True
        value, gradient = _value_and_gradient(
            mask_consistency, logits, inside, _ids(0, 0, 0), detach_mean=detach_mean
        )
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(logits))

    @both_means
    def test_a_mask_apart_from_its_group_changes_only_n(self, detach_mean):
        logits, inside = _draw_masks(4, (3, 3), seed=1)
        inside[3] = False
        three = _value_and_gradient(
            mask_consistency, logits[:3], inside[:3], _ids(5, 5, 5), detach_mean=detach_mean
        )
        four = _value_and_gradient(
            mask_consistency, logits, inside, _ids(5, 5, 5, 5), detach_mean=detach_mean
        )
        torch.testing.assert_close(three[0] * 3 / 4, four[0])
        torch.testing.assert_close(three[1] * 3 / 4, four[1][:3])
        assert not four[1][3].any()

    @pytest.mark.parametrize('fill', [0.0, 1e4, -1e30, 1e30])
    def test_pixels_outside_influence_nothing(self, fill):
        logits, inside = _draw_masks(5, (3, 4), seed=2)
        ids = _ids(0, 0, 0, 7, 7)
        before = _value_and_gradient(mask_consistency, logits, inside, ids)
        other = torch.where(inside, logits, fill)
        after = _value_and_gradient(mask_consistency, other, inside, ids)
        assert before[0] > 0
        torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-15)
        assert not after[1][~inside].any()

    @pytest.mark.parametrize('fill', [math.nan, math.inf, -math.inf])
    def test_unpaired_masks_influence_nothing(self, fill):
        logits, inside = _draw_masks(5, (3, 4), seed=3)
        ids = _ids(0, -1, 0, -1, 8)
        before = _value_and_gradient(mask_consistency, logits, inside, ids)
        logits[[1, 3, 4]] = fill
        after = _value_and_gradient(mask_consistency, logits, inside, ids)
        assert before[0] > 0
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])

    def test_a_pixel_is_shared_within_a_group_only(self):
        """Two groups see different pixels; the unpaired mask sees all of them."""
        logits, _ = _draw_masks(5, (1, 2), seed=4)
        inside = torch.tensor([[[1, 0]], [[0, 1]], [[0, 1]], [[1, 0]], [[1, 1]]]).bool()
        value, _ = _value_and_gradient(mask_consistency, logits, inside, _ids(0, 0, 6, 6, -1))
        assert value == 0

    def test_gradcheck(self):
        logits, inside = _draw_masks(6, (2, 2), seed=5)
        assert 0 < inside.sum() < inside.numel()
        assert torch.autograd.gradcheck(
            lambda x: mask_consistency(x, inside, _ids(0, 0, 0, 4, 4, -1)), logits.requires_grad_()
        )

    @pytest.mark.parametrize('rows', EXTREME_LOGITS.values(), ids=EXTREME_LOGITS)
    def test_extremes_half_outside(self, rows):
        logits = torch.tensor(rows, dtype=torch.float32)[:, None]
        inside = torch.ones_like(logits, dtype=torch.bool)
        inside[0, 0, 0] = False
        ids = _ids(*[3] * len(rows))
        value, gradient = _value_and_gradient(mask_consistency, logits, inside, ids)
        expected = reference.masks(logits, inside, ids).item()
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert gradient.isfinite().all()

    def test_replicas_of_one_mask(self):
        """Through the maps to the source: a mask agrees with its flipped twin."""
        mask, roi = _draw_masks(1, (8, 8), seed=6)[0], [4, 4, 12, 12]
        region, ids = torch.tensor([roi] * 2).double(), _ids(0, 0)
        flip = torch.tensor(geometry.flip_matrix((20, 30), 'horizontal'))
        matrices = torch.stack([torch.eye(3).double(), flip])
        masks = torch.cat([mask, mask.flip(2)])
        rois = geometry.map_boxes(region, matrices)
        grids = geometry.masks_to_source(masks, rois, matrices, region, 8)
        assert mask_consistency(*grids, ids) < 1e-12
        grids = geometry.masks_to_source(mask.expand(2, 8, 8), rois, matrices, region, 8)
        assert mask_consistency(*grids, ids) > 0.1


def _draw_sides(n, count, seed):
    """Logits, and positions from a place and at a spacing, up or down, of their own."""
    random = np.random.default_rng(seed)
    starts = random.choice([0, 40, 900]) + random.normal(size=(n, 4, 1)) * random.choice(
        [0.5, 4, 30]
    )
    spacing = random.uniform(0.2, 3, (n, 4, 1)) * random.choice([-1, 1], (n, 4, 1))
    logits = random.normal(size=(n, 4, count)) * 2
    return torch.tensor(logits), torch.tensor(starts + spacing * np.arange(count))


def _sides_of(*distributions):
    """Logits (n, 4, K) of the same distribution for all four sides."""
    p = torch.tensor(distributions, dtype=torch.float64).clamp(min=1e-300)
    return p.log()[:, None].repeat(1, 4, 1)


def _at(*rows):
    """The same positions (n, 4, K) for all four sides."""
    return torch.tensor(rows, dtype=torch.float64)[:, None].repeat(1, 4, 1)


def _damped(p):
    """The mean of log(1 + KL) of the mean of distributions (n, K) to each."""
    mean = p.mean(dim=0)
    return torch.stack([(mean * (mean / own).log()).sum().log1p() for own in p]).mean()


def _draw_whole(n, seed):
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) < 0.7


class TestWholeSides:
    """Only what nothing cut is compared."""

    @both_means
    @_some
    @given(ids=some_ids, seed=st.integers(0, 999), avg_factor=st.none() | st.floats(0.5, 100))
    def test_boxes_equal_the_reference(self, detach_mean, ids, seed, avg_factor):
        boxes, ids = _predictions(BOX, len(ids), seed=seed), _ids(*ids)
        options = dict(
            detach_mean=detach_mean, avg_factor=avg_factor, whole_sides=_draw_whole(len(ids), seed)
        )
        ours = _value_and_gradient(box_consistency, boxes, ids, **options)
        naive = _value_and_gradient(reference.box, boxes, ids, **options)
        torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)

    @both_means
    @_some
    @given(ids=few_ids, seed=st.integers(0, 999))
    def test_sides_equal_the_reference(self, detach_mean, ids, seed):
        logits, positions = _draw_sides(len(ids), 4, seed)
        options = dict(detach_mean=detach_mean, whole_sides=_draw_whole(len(ids), seed))
        ours = _value_and_gradient(side_consistency, logits, positions, _ids(*ids), **options)
        naive = _value_and_gradient(reference.sides, logits, positions, _ids(*ids), **options)
        torch.testing.assert_close(ours, naive, rtol=1e-8, atol=1e-10)

    @_some
    @given(ids=some_ids, seed=st.integers(0, 999))
    def test_what_is_compared(self, ids, seed):
        whole, ids = _draw_whole(len(ids), seed), _ids(*ids)
        for found, parts in (
            (compared_axes(ids, whole), [[0, 2], [1, 3]]),
            (compared_sides(ids, whole), [[0], [1], [2], [3]]),
        ):
            for i, row in enumerate(found.tolist()):
                for own, sides in zip(row, parts):
                    assert own == bool(reference.whole_positives(ids, i, whole, sides))

    @pytest.mark.parametrize('fill', [1e30, -1e30, math.nan, math.inf])
    def test_a_cut_axis_influences_nothing(self, fill):
        boxes, ids = _predictions(BOX, 4, seed=3), _ids(0, 0, 0, 0)
        whole = torch.ones(4, 4, dtype=torch.bool)
        whole[1, 2] = False
        before = _value_and_gradient(box_consistency, boxes, ids, whole_sides=whole)
        boxes[1, [0, 2]] = fill
        after = _value_and_gradient(box_consistency, boxes, ids, whole_sides=whole)
        assert before[0] > 0 and torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1]) and not after[1][1, [0, 2]].any()

    def test_two_with_one_whole_each_compare_nothing(self):
        boxes = _predictions(BOX, 2)
        whole = torch.tensor([[True, True, False, True], [True] * 4])
        value, gradient = _value_and_gradient(box_consistency, boxes, _ids(0, 0), whole_sides=whole)
        assert value > 0 and not gradient[:, [0, 2]].any() and gradient[:, [1, 3]].any()
        value, gradient = _value_and_gradient(
            box_consistency, boxes, _ids(0, 0), whole_sides=torch.zeros(2, 4, dtype=torch.bool)
        )
        assert value == 0 and not gradient.any()

    @pytest.mark.parametrize(
        'whole', [torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 4), torch.ones(3, 4).bool()]
    )
    def test_of_another_form(self, whole):
        with pytest.raises(ValueError, match='whole_sides is'):
            box_consistency(torch.zeros(2, 4), _ids(0, 0), whole_sides=whole)


class TestDamping:
    """The KL near agreement, a logarithm far away."""

    @_some
    @given(seed=st.integers(0, 99), size=st.floats(1e-3, 3e-2))
    def test_boxes_near_agreement_have_the_kl(self, seed, size):
        generator = torch.Generator().manual_seed(seed)
        change = size * torch.randn(3, 4, dtype=torch.float64, generator=generator)
        boxes, ids = torch.tensor([10.0, 20, 12, 22]).double() + change, _ids(0, 0, 0)
        value, gradient = _value_and_gradient(box_consistency, boxes, ids)
        kl, exact = _value_and_gradient(lambda x: reference.box(x, ids, damp=False), boxes)
        # The KL is of second order in the change, and the difference of fourth.
        assert 0 <= kl - value <= 100 * size**4
        assert (gradient - exact).abs().max() <= 200 * size**3
        assert kl > size**2 / 1000

    @both_means
    @_some
    @given(seed=st.integers(0, 99), factor=st.floats(2, 1e4), start=st.floats(1, 1e3))
    def test_boxes_far_apart_grow_like_a_logarithm(self, detach_mean, seed, factor, start):
        boxes, ids = _predictions(BOX, 2, seed=seed), _ids(0, 0)
        boxes = boxes - ((boxes[:, :2] + boxes[:, 2:]) / 2).repeat(1, 2)
        direction = torch.tensor([[-1.0], [1.0]]).double()

        def term(distance):
            return _value_and_gradient(
                box_consistency, boxes + direction * distance, ids, detach_mean=detach_mean
            )

        near, far = term(start * 100), term(start * 100 * factor)
        assert 0 < far[0] - near[0] <= 2 * 2 * math.log(factor) + 1e-6
        # In units of the smaller box's side, of two axes; the mean is of half the weight.
        sides = (boxes[:, 2:] - boxes[:, :2]).amin()
        assert (far[1] * sides).abs().max() < 4

    def test_sizes_far_apart_grow_like_a_logarithm(self):
        box = torch.tensor([0.0, 0, 1, 1]).double()
        values = [
            box_consistency(torch.stack([box, box * 10**power]), _ids(0, 0))
            for power in range(1, 7)
        ]
        steps = [(b - a).item() for a, b in itertools.pairwise(values)]
        assert all(0 < step <= 2 * 2 * math.log(10) for step in steps)

    def test_sides_that_do_not_overlap(self):
        logits, positions = _sides_of([1, 0, 0], [1, 0, 0]), _at([0, 1, 2], [90, 91, 92])
        value = side_consistency(logits, positions, _ids(0, 0))
        assert 1 < value < 4 * math.log1p(-math.log(BIN_FLOOR / 7))


class TestSides:
    @both_means
    @_some
    @given(
        ids=few_ids,
        count=st.integers(1, 6),
        seed=st.integers(0, 999),
        avg_factor=st.none() | st.floats(0.5, 100),
    )
    def test_equals_the_reference(self, detach_mean, ids, count, seed, avg_factor):
        logits, positions = _draw_sides(len(ids), count, seed)
        options = dict(detach_mean=detach_mean, avg_factor=avg_factor)
        naive = _value_and_gradient(reference.sides, logits, positions, _ids(*ids), **options)
        ours = _value_and_gradient(side_consistency, logits, positions, _ids(*ids), **options)
        torch.testing.assert_close(ours, naive, rtol=1e-8, atol=1e-10)
        narrow = _value_and_gradient(
            side_consistency, logits.float(), positions, _ids(*ids), **options
        )
        assert narrow[0].dtype == torch.float32
        torch.testing.assert_close(
            [part.double() for part in narrow], list(naive), rtol=1e-3, atol=1e-4
        )

    def test_constants(self):
        assert BIN_FLOOR == reference.BIN_FLOOR and MIN_BOX_SIDE == reference.MIN_BOX_SIDE

    @both_means
    def test_mirrored_positions(self, detach_mean):
        """Of a flipped replica the positions come in the opposite order."""
        logits, positions = _draw_sides(1, 7, seed=0)
        value, gradient = _value_and_gradient(
            side_consistency,
            torch.cat([logits, logits.flip(2)]),
            torch.cat([positions, positions.flip(2)]),
            _ids(0, 0),
            detach_mean=detach_mean,
        )
        assert abs(value) < 1e-12
        assert gradient.abs().max() < 1e-12
        assert (
            side_consistency(
                torch.cat([logits, logits]), torch.cat([positions, positions.flip(2)]), _ids(0, 0)
            )
            > 0.1
        )

    @pytest.mark.parametrize('spacing', [0.7, -4])
    def test_positions_shifted_by_whole_steps(self, spacing):
        """Points two steps apart that see the same side."""
        logits = _sides_of([0, 0.1, 0.2, 0.4, 0.3, 0, 0], [0.1, 0.2, 0.4, 0.3, 0, 0, 0])
        positions = _at(*[[100 + spacing * (i + k) for k in range(7)] for i in range(2)])
        assert abs(side_consistency(logits, positions, _ids(2, 2))) < 1e-12
        assert side_consistency(logits, positions[[0, 0]], _ids(2, 2)) > 0.1

    def test_equals_the_categorical_term_where_positions_fall_on_bins(self):
        """Both distributions have the mean 2, a position, so bins lie at positions."""
        p = [[0.1, 0.2, 0.4, 0.2, 0.1], [0.05, 0.3, 0.3, 0.3, 0.05]]
        positions, ids = _at(*[[0, 1, 2, 3, 4]] * 2), _ids(0, 0)
        value = side_consistency(_sides_of(*p), positions, ids)
        plain = _damped(torch.tensor(p, dtype=torch.float64))
        assert value.item() == pytest.approx(4 * plain.item(), rel=0.015)
        # The share of all eleven bins and five times nothing around the positions.
        floored = [[(1 - BIN_FLOOR) * x + BIN_FLOOR / 11 for x in [*row, *[0] * 6]] for row in p]
        exact = _damped(torch.tensor(floored, dtype=torch.float64))
        torch.testing.assert_close(value, 4 * exact, rtol=1e-12, atol=0)

    def test_a_position_between_two_bins_counts_for_both(self):
        """One position each, 1 px wide bins (of the second), around the mean 0.25."""
        logits = _sides_of([1, 0], [1, 0])
        value = side_consistency(logits, _at([0, 0.5], [0.5, 1.5]), _ids(0, 0))
        rows = torch.tensor([[0, 0.25, 0.75, 0, 0], [0, 0, 0.75, 0.25, 0]]).double()
        floored = (1 - BIN_FLOOR) * rows + BIN_FLOOR / 5
        expected = 4 * _damped(floored)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize('away', [3, 50, 1e7])
    def test_supports_that_do_not_overlap(self, away):
        """Finite, and the more of the mass apart the more."""
        logits, _ = _draw_sides(2, 3, seed=1)
        near, _ = _value_and_gradient(
            side_consistency, logits, _at([0, 1, 2], [1, 2, 3]), _ids(0, 0)
        )
        far, gradient = _value_and_gradient(
            side_consistency, logits, _at([0, 1, 2], [away, away + 1, away + 2]), _ids(0, 0)
        )
        assert near < far < 4 * -math.log(BIN_FLOOR / 7)
        assert gradient.isfinite().all()

    def test_no_common_bin_gives_no_pull(self):
        """All positions of a prediction count for the last bin, however they are drawn."""
        logits, _ = _draw_sides(2, 3, seed=1)
        _, gradient = _value_and_gradient(
            side_consistency, logits, _at([0, 1, 2], [900, 901, 902]), _ids(0, 0)
        )
        assert gradient.abs().max() < 1e-12

    @pytest.mark.parametrize('spacing', [0.0, 1e-9])
    def test_positions_that_coincide(self, spacing):
        """A matrix that squeezes the image to a line brings all of them to one place."""
        logits, _ = _draw_sides(3, 5, seed=2)
        positions = (7 + spacing * torch.arange(5)).double().expand(3, 4, 5)
        value, gradient = _value_and_gradient(side_consistency, logits, positions, _ids(0, 0, 0))
        assert abs(value) < 1e-9
        assert gradient.isfinite().all()

    @pytest.mark.parametrize('places, differ', [((7, 7), False), ((7, 8), True)])
    def test_one_position_a_side(self, places, differ):
        """Nothing to learn, as the probability is one; no division by K - 1 either."""
        logits = torch.randn(2, 4, 1).double()
        value, gradient = _value_and_gradient(
            side_consistency, logits, _at(*[[place] for place in places]), _ids(0, 0)
        )
        assert (value > 1) == differ and value > -1e-12
        assert not gradient.any()

    def test_no_prediction(self):
        for count in (1, 5):
            value, gradient = _value_and_gradient(
                side_consistency, torch.zeros(0, 4, count), torch.zeros(0, 4, count), _ids()
            )
            assert value == 0 and gradient.shape == (0, 4, count)

    def test_each_side_has_bins_of_its_own(self):
        """The sides are summed; one that agrees adds nothing, wherever it is."""
        logits, positions = _draw_sides(2, 5, seed=3)
        logits[1, 1:], positions[1, 1:] = logits[0, 1:], positions[0, 1:]
        value, gradient = _value_and_gradient(side_consistency, logits, positions, _ids(0, 0))
        assert value > 0.01
        assert gradient[:, 0].abs().max() > 1e-3
        assert gradient[:, 1:].abs().max() < 1e-12

    def test_gradient_with_bins_that_stay_where_they_are(self):
        """Finite differences, of distributions whose expected positions do not change.

        The logits of the two outer positions are one number, of the inner two another.
        """
        positions, ids = _at(*[[0, 1, 2, 3]] * 3), _ids(0, 0, 0)

        def run(x):
            return side_consistency(x[..., [0, 1, 1, 0]], positions, ids)

        x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(run, x)

    def test_positions_get_no_gradient(self):
        logits, positions = _draw_sides(2, 5, seed=4)
        positions.requires_grad_()
        _value_and_gradient(side_consistency, logits, positions, _ids(0, 0))
        assert positions.grad is None

    @pytest.mark.parametrize('fill', [math.nan, math.inf, -math.inf, 1e30])
    def test_unpaired_sides_influence_nothing(self, fill):
        logits, positions = _draw_sides(5, 4, seed=5)
        ids = _ids(0, -1, 0, -1, 8)
        before = _value_and_gradient(side_consistency, logits, positions, ids)
        logits[[1, 3, 4]] = fill
        positions[[1, 3, 4]] = fill
        after = _value_and_gradient(side_consistency, logits, positions, ids)
        assert before[0] > 0
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])

    @_some
    @given(scale=st.floats(0.1, 10), shift=st.floats(-500, 500), seed=st.integers(0, 99))
    def test_ignores_scale_and_shift_of_the_frame(self, scale, shift, seed):
        logits, positions = _draw_sides(5, 4, seed)
        ids = _ids(0, 0, 0, 1, 1)
        before = _value_and_gradient(side_consistency, logits, positions, ids)
        positions = positions * scale + shift
        after = _value_and_gradient(side_consistency, logits, positions, ids)
        torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-9)

    @_some
    @given(ids=few_ids, seed=st.integers(0, 99))
    def test_order_of_the_predictions(self, ids, seed):
        logits, positions = _draw_sides(len(ids), 4, seed)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
        value, gradient = _value_and_gradient(side_consistency, logits, positions, _ids(*ids))
        moved = _value_and_gradient(
            side_consistency, logits[order], positions[order], _ids(*ids)[order]
        )
        torch.testing.assert_close((value, gradient[order]), moved, rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
    def test_replicas_of_one_point(self, direction):
        """Through the map to the source: a flip mirrors the point and swaps the sides."""
        logits, _ = _draw_sides(1, 6, seed=6)
        flip = torch.tensor(geometry.flip_matrix((40, 50), direction))
        matrices = torch.stack([torch.eye(3).double(), flip])
        points = geometry.map_points(torch.tensor([[20.0, 13]]).expand(2, 1, 2), matrices)
        positions, sides = geometry.side_positions_to_source(
            points[:, 0], torch.arange(6.0).expand(2, 6), matrices
        )
        # What a head says of the replica's sides that sees the same in both.
        swapped = logits[:, sides[1].argsort()]
        both = torch.cat([logits, swapped])
        restored = both.gather(1, sides[..., None].expand(-1, -1, 6))
        assert abs(side_consistency(restored, positions, _ids(0, 0))) < 1e-12
        assert side_consistency(both, positions, _ids(0, 0)) > 0.1

    def test_no_tensor_of_all_pairs(self):
        logits = torch.randn(2000, 4, 4)
        with _LargestTensor() as largest:
            _value_and_gradient(side_consistency, logits, logits, torch.arange(2000) % 9)
        assert largest.numel <= 2000 * 4 * 9 * 2


class _LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


class TestCost:
    @smooth_terms
    @pytest.mark.parametrize('spread', [1, 2, 1000, 3000])
    def test_no_tensor_of_all_pairs(self, term, spread):
        """The largest, in forward or backward, is a small multiple of the input."""
        n, predictions = 3000, _predictions(term, 3000, 4)
        ids = torch.arange(n) % spread
        with _LargestTensor() as largest:
            _value_and_gradient(term.ours, predictions, ids)
        assert n * 4 <= largest.numel <= 2 * n * 4

    def test_the_watch_sees_all_pairs(self):
        x = torch.rand(30)
        with _LargestTensor() as largest:
            (x[:, None] == x).any()
        assert largest.numel == 900

    @smooth_terms
    def test_saves_little_for_backward(self, term):
        saved = []
        predictions = _predictions(term, 3000, 4).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda x: x
        ):
            term.ours(predictions, torch.arange(3000) % 750)
        assert 0 < max(saved) <= 3000 * 4
        assert sum(saved) <= 40 * 3000 * 4

    @every_term
    def test_inputs_stay_as_they_are(self, term):
        predictions, ids = _predictions(term, 5), _ids(4, 4, -1, 9, 9)
        copies = predictions.clone(), ids.clone()
        _value_and_gradient(term.ours, predictions, ids)
        assert torch.equal(predictions, copies[0]) and torch.equal(ids, copies[1])


class TestErrors:
    @row_terms
    @pytest.mark.parametrize(
        'shape, ids', [((4, 4), 3), ((3, 4), 4), ((4,), 4), ((2, 2, 4), 2), ((0, 4), 1)]
    )
    def test_shapes(self, term, shape, ids):
        with pytest.raises(ValueError, match=r'expected \(N, C\)') as error:
            term.ours(torch.zeros(shape), torch.zeros(ids, dtype=torch.int64))
        assert str(tuple(shape)) in str(error.value)
        assert str((ids,)) in str(error.value)

    @every_term
    def test_ids_as_a_column(self, term):
        with pytest.raises(ValueError, match=r'\(4, 1\)'):
            term.ours(torch.zeros(4, 4), torch.zeros(4, 1, dtype=torch.int64))

    @every_term
    @pytest.mark.parametrize('dtype', [torch.float32, torch.bool, torch.float16])
    def test_ids_that_are_no_integers(self, term, dtype):
        with pytest.raises(ValueError, match=f'{dtype}.*integers'):
            term.ours(torch.zeros(4, 4), torch.zeros(4, dtype=dtype))

    @classifiers
    @pytest.mark.parametrize('temperature', [0, -1.5, math.nan])
    def test_temperature(self, term, temperature):
        with pytest.raises(ValueError, match=f'temperature is {temperature};'):
            term.ours(torch.zeros(4, 4), _ids(0, 0, 1, 1), temperature=temperature)

    @every_term
    @pytest.mark.parametrize('avg_factor', [0, -2.0, math.nan])
    def test_avg_factor(self, term, avg_factor):
        with pytest.raises(ValueError, match=f'avg_factor is {avg_factor};'):
            term.ours(torch.zeros(4, 4), _ids(0, 0, 1, 1), avg_factor=avg_factor)

    @pytest.mark.parametrize('columns', [0, 1, 3, 5, 8])
    def test_boxes_without_four_coordinates(self, columns):
        with pytest.raises(ValueError, match=rf'\(3, {columns}\).*\(N, 4\)'):
            box_consistency(torch.zeros(3, columns), _ids(0, 0, 0))

    @pytest.mark.parametrize(
        'masks, inside',
        [
            ((3, 4), (3, 4)),
            ((3, 4, 4), (3, 4, 5)),
            ((3, 4, 4), (3, 1, 4)),
            ((3, 1, 4, 4), (3, 1, 4, 4)),
            ((2, 4, 4), (3, 4, 4)),
        ],
    )
    def test_masks_that_do_not_fit(self, masks, inside):
        with pytest.raises(ValueError, match=r'expected \(N, H, W\)') as error:
            mask_consistency(
                torch.zeros(masks), torch.ones(inside, dtype=torch.bool), _ids(0, 0, 0)
            )
        assert str(masks) in str(error.value) and str(inside) in str(error.value)

    @pytest.mark.parametrize(
        'sides, positions',
        [
            ((3, 4), (3, 4)),
            ((3, 4, 5), (3, 4, 6)),
            ((3, 4, 5), (4, 5)),
            ((3, 3, 5), (3, 3, 5)),
            ((3, 8, 5), (3, 8, 5)),
            ((3, 4, 0), (3, 4, 0)),
            ((2, 4, 5), (3, 4, 5)),
        ],
    )
    def test_sides_that_do_not_fit(self, sides, positions):
        with pytest.raises(ValueError, match=r'expected \(N, 4, K\)') as error:
            side_consistency(torch.zeros(sides), torch.zeros(positions), _ids(0, 0, 0))
        assert str(sides) in str(error.value) and str(positions) in str(error.value)

    @pytest.mark.parametrize('ids', [_ids(0, 0), _ids(0, 0, 0, 0), _ids()])
    def test_ids_that_do_not_fit_masks_and_sides(self, ids):
        whole = torch.ones(3, 4, 5)
        for term in (mask_consistency, side_consistency):
            with pytest.raises(ValueError, match=rf'group ids \({len(ids)},\)'):
                term(whole, whole, ids)

    @pytest.mark.parametrize('temperature', [0, -1.5, math.nan])
    def test_temperature_of_masks(self, temperature):
        with pytest.raises(ValueError, match=f'temperature is {temperature};'):
            _as_masks(torch.zeros(4, 4), _ids(0, 0, 1, 1), temperature=temperature)


def test_logits_of_both_are_those_of_the_product():
    a, b = (torch.randn(200, dtype=torch.float64) * 5 for _ in range(2))
    a.requires_grad_(), b.requires_grad_()
    expected = (a.sigmoid() * b.sigmoid()).logit()
    found = logits_of_both(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    mine, theirs = (torch.autograd.grad(each.sum(), [a, b]) for each in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
    # Where the product rounds to 1, or to 0.
    sure = torch.tensor([60.0, -300.0])
    torch.testing.assert_close(logits_of_both(sure, sure), torch.tensor([60 - math.log(2), -600.0]))
