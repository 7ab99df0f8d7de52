"""The consistency term: value, gradient, extremes, invariances and cost."""
import math
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lt_mm.core.consistency import (MIN_BOX_SIDE, bernoulli_consistency,
                                    box_consistency, categorical_consistency)
from tests import reference_losses as reference

Term = namedtuple('Term', 'name ours naive draw')
LARGEST, SMALLEST = 2**63 - 1, -2**63

_some = settings(max_examples=20, deadline=None)


def _draw_logits(n, num_classes, generator):
    return 3 * torch.randn(n, num_classes, dtype=torch.float64, generator=generator)


def _draw_boxes(n, _, generator):
    """Boxes of 5 to 60 pixels in the first 160: float32 keeps 1e-7 of their sides."""
    draw = torch.rand(n, 4, dtype=torch.float64, generator=generator)
    corner, sides = 100 * draw[:, :2], 5 + 55 * draw[:, 2:]
    return torch.cat([corner, corner + sides], dim=1)


CATEGORICAL = Term('categorical', categorical_consistency, reference.categorical,
                   _draw_logits)
BERNOULLI = Term('bernoulli', bernoulli_consistency, reference.bernoulli, _draw_logits)
BOX = Term('box', box_consistency, reference.box, _draw_boxes)

every_term = pytest.mark.parametrize('term', [CATEGORICAL, BERNOULLI, BOX],
                                     ids=lambda term: term.name)
classifiers = pytest.mark.parametrize('term', [CATEGORICAL, BERNOULLI],
                                      ids=lambda term: term.name)
both_means = pytest.mark.parametrize('detach_mean', [False, True])

# Few values, so that groups form; huge ones, so that no id can serve as an index.
any_id = st.sampled_from([-5, -1, 0, 1, 2, 7, 2**40, LARGEST, SMALLEST])
some_ids = st.integers(0, 40).flatmap(
    lambda n: st.lists(any_id, min_size=n, max_size=n))


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

    @every_term
    @both_means
    @_some
    @given(ids=some_ids, num_classes=st.integers(1, 20), seed=st.integers(0, 999),
           avg_factor=st.none() | st.floats(0.5, 100))
    def test_float64(self, term, detach_mean, ids, num_classes, seed, avg_factor):
        _assert_equals_reference(
            term, _predictions(term, len(ids), num_classes, seed), _ids(*ids),
            rtol=1e-10, atol=1e-12, detach_mean=detach_mean, avg_factor=avg_factor)

    @every_term
    @both_means
    @_some
    @given(ids=some_ids, num_classes=st.integers(1, 20), seed=st.integers(0, 999))
    def test_float32(self, term, detach_mean, ids, num_classes, seed):
        predictions = _predictions(term, len(ids), num_classes, seed).float()
        _assert_equals_reference(term, predictions, _ids(*ids), rtol=1e-5, atol=1e-6,
                                 detach_mean=detach_mean)

    @classifiers
    @both_means
    @pytest.mark.parametrize('temperature', [0.05, 0.5, 2, 100])
    def test_temperature(self, term, detach_mean, temperature):
        _assert_equals_reference(
            term, _predictions(term, 9), _ids(3, 3, 0, 0, 0, -1, -1, 3, 8), rtol=1e-10,
            atol=1e-12, temperature=temperature, detach_mean=detach_mean)

    @every_term
    @pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.int16,
                                       torch.int8, torch.uint8])
    def test_types_of_ids(self, term, dtype):
        ids = torch.tensor([100, 0, 100, 3, 0, 0], dtype=dtype)
        _assert_equals_reference(term, _predictions(term, 6), ids, rtol=1e-10, atol=0)

    @every_term
    def test_one_large_group(self, term):
        _assert_equals_reference(term, _predictions(term, 40), _ids(*[SMALLEST + 1] * 5,
                                 *[LARGEST] * 35), rtol=1e-10, atol=0)

    def test_small_and_inverted_sides_count_as_the_smallest_side(self):
        boxes = torch.tensor([[0, 0, 0, 3], [1, 1, 1.004, 2], [2, 5, 1, 3]]).double()
        _assert_equals_reference(BOX, boxes, _ids(0, 0, 0), rtol=1e-10, atol=0)
        assert MIN_BOX_SIDE == reference.MIN_BOX_SIDE


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
        assert value.item() == pytest.approx((first + second) / 2, rel=1e-12)

    def test_gradient_of_two_sigmoids(self):
        x = torch.tensor([[2.0], [-2.0]]).double()
        _, gradient = _value_and_gradient(bernoulli_consistency, x, _ids(0, 0),
                                          detach_mean=True)
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

    @every_term
    def test_gradcheck(self, term):
        predictions = _predictions(term, 7, 3).requires_grad_()
        ids = _ids(0, 5, 0, -1, 5, 5, 9)
        assert torch.autograd.gradcheck(lambda x: term.ours(x, ids), predictions)

    @every_term
    def test_detach_mean_changes_the_gradient_not_the_value(self, term):
        predictions, ids = _predictions(term, 6), _ids(0, 0, 0, 1, 1, 1)
        value, through = _value_and_gradient(term.ours, predictions, ids)
        same, constant = _value_and_gradient(term.ours, predictions, ids,
                                             detach_mean=True)
        assert value == same
        assert (through - constant).norm() > 0.05 * through.norm()

    @every_term
    @both_means
    def test_descent_brings_predictions_together(self, term, detach_mean):
        predictions, ids = _predictions(term, 4), _ids(0, 0, 0, 0)
        before, gradient = _value_and_gradient(term.ours, predictions, ids,
                                               detach_mean=detach_mean)
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
        value, gradient = _value_and_gradient(term.ours, predictions, ids,
                                              detach_mean=detach_mean)
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
        assert all(torch.equal(parameter.grad, torch.zeros_like(parameter))
                   for parameter in layer.parameters())


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
EXTREMES = [pytest.param(term, rows, id=f'{term.name}-{name}')
            for term, cases in ((CATEGORICAL, EXTREME_LOGITS),
                                (BERNOULLI, EXTREME_LOGITS), (BOX, DEGENERATE_BOXES))
            for name, rows in cases.items()]


class TestExtremes:

    @both_means
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize('term, rows', EXTREMES)
    def test_value_and_finite_gradient(self, term, rows, dtype, detach_mean):
        predictions = torch.tensor(rows, dtype=dtype)
        ids = _ids(*[6] * len(rows))
        value, gradient = _value_and_gradient(term.ours, predictions, ids,
                                              detach_mean=detach_mean)
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
        value, gradient = _value_and_gradient(term.ours, predictions, ids,
                                              detach_mean=detach_mean)
        moved_value, moved_gradient = _value_and_gradient(
            term.ours, predictions[order], ids[order], detach_mean=detach_mean)
        torch.testing.assert_close(value, moved_value)
        torch.testing.assert_close(gradient[order], moved_gradient)

    @every_term
    @_some
    @given(ids=st.lists(st.integers(-2, 5), max_size=30), data=st.data())
    def test_names_of_the_groups(self, term, ids, data):
        names = data.draw(st.lists(st.integers(0, LARGEST), min_size=6, max_size=6,
                                   unique=True))
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
        value, gradient = _value_and_gradient(term.ours, predictions, ids,
                                              detach_mean=detach_mean)
        assert abs(value.item()) < 1e-14
        assert gradient.abs().max() < 1e-14

    @every_term
    @pytest.mark.parametrize('row', range(6))
    def test_positive_where_one_prediction_differs(self, term, row):
        predictions = _predictions(term, 2).repeat_interleave(3, dim=0)
        predictions[row, 1] += 0.01
        value, gradient = _value_and_gradient(term.ours, predictions,
                                              _ids(0, 0, 0, 1, 1, 1))
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
            _value_and_gradient(categorical_consistency, logits, ids))

    def test_sigmoid_treats_yes_and_no_alike(self):
        logits, ids = _predictions(BERNOULLI, 6), _ids(0, 0, 0, 1, 1, -1)
        value, gradient = _value_and_gradient(bernoulli_consistency, logits, ids)
        mirrored = _value_and_gradient(bernoulli_consistency, -logits, ids)
        torch.testing.assert_close((value, -gradient), mirrored)

    @_some
    @given(scale=st.floats(0.1, 10), shift=st.floats(-500, 500),
           flips=st.sets(st.sampled_from([0, 1])), seed=st.integers(0, 99))
    def test_box_term_ignores_scale_shift_and_flip_of_the_frame(
            self, scale, shift, flips, seed):
        boxes, ids = _predictions(BOX, 9, seed=seed), _ids(0, 0, 0, 1, 1, -1, 2, 2, 2)
        value, gradient = _value_and_gradient(box_consistency, boxes, ids)

        def moved(x):
            x = x * scale + shift * torch.tensor([1, -2, 1, -2])
            columns = [x[:, i] for i in range(4)]
            for axis in flips:
                columns[axis], columns[axis + 2] = (640 - columns[axis + 2],
                                                    640 - columns[axis])
            return torch.stack(columns, dim=1)

        frame_value, frame_gradient = _value_and_gradient(
            lambda x: box_consistency(moved(x), ids), boxes)
        torch.testing.assert_close(value, frame_value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, frame_gradient, rtol=1e-7, atol=1e-9)

    def test_box_term_does_not_ignore_the_scale_of_one_box(self):
        boxes, ids = _predictions(BOX, 3), _ids(0, 0, 0)
        scaled = torch.cat([boxes[:2], boxes[2:] * 1.5])
        before, _ = _value_and_gradient(box_consistency, boxes, ids)
        after, _ = _value_and_gradient(box_consistency, scaled, ids)
        assert abs(before - after) > 1e-3


class _LargestTensor(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made)
                 if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return made


class TestCost:

    @every_term
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

    @every_term
    def test_saves_little_for_backward(self, term):
        saved = []
        predictions = _predictions(term, 3000, 4).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: saved.append(tensor.numel()) or tensor, lambda x: x):
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

    @every_term
    @pytest.mark.parametrize('shape, ids', [
        ((4, 4), 3), ((3, 4), 4), ((4, ), 4), ((2, 2, 4), 2), ((0, 4), 1)])
    def test_shapes(self, term, shape, ids):
        with pytest.raises(ValueError, match=r'expected \(N, C\)') as error:
            term.ours(torch.zeros(shape), torch.zeros(ids, dtype=torch.int64))
        assert str(tuple(shape)) in str(error.value)
        assert str((ids, )) in str(error.value)

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
