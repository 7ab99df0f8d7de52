"""The memory of earlier predictions against a dictionary of numbers, one instance at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.memory import Memory, fingerprints, joined_means
from lt_mm.core.memory_codes import BoxCode, ClassCode, MaskCode, as_stored, smallest_kept

_some = settings(max_examples=40, deadline=None)
C, GRID = 6, 2
MOMENTUM = 0.7
# Of float16, relative, and what a running mean makes of it.
ROUNDING = 2**-11 / (1 - MOMENTUM)

# Steps of training; each has predictions of instances (source, place), some of which take no part.
instances = st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans())
steps_of_training = st.lists(st.lists(instances, max_size=7), min_size=1, max_size=6)


class NaiveMemory:
    """Means of lists of numbers, of which None is not known."""

    def __init__(self):
        self.means = {}

    def present(self, keys, keep, rows):
        """For each key the mean of its rows, and how many numbers each entry of it has."""
        found = {}
        for key in {key for key, kept in zip(keys, keep) if kept}:
            own = [row for other, kept, row in zip(keys, keep, rows) if kept and other == key]
            columns = [[value for value in column if not math.isnan(value)] for column in zip(*own)]
            means = [sum(column) / len(column) if column else None for column in columns]
            found[key] = means, [len(column) for column in columns]
        return found

    def target(self, keys, keep, rows):
        present = self.present(keys, keep, rows)
        return [
            self._target(key, *present[key]) if kept else [None] * len(row)
            for key, kept, row in zip(keys, keep, rows)
        ]

    def _target(self, key, means, counts):
        stored = self.means.get(key, [None] * len(means))
        target = []
        for old, new, count in zip(stored, means, counts):
            if count < 2:
                target.append(old)
            else:
                target.append(new if old is None else (old + count * new) / (1 + count))
        return target

    def update(self, keys, keep, rows):
        for key, (means, _) in self.present(keys, keep, rows).items():
            stored = self.means.get(key, means)
            self.means[key] = [
                new if old is None else old if new is None else MOMENTUM * old + 0.3 * new
                for old, new in zip(stored, means)
            ]


def _codes(num_kept=C, sigmoid=False):
    return {'classes': ClassCode(C, num_kept, sigmoid), 'boxes': BoxCode(), 'masks': MaskCode(GRID)}


def _draw(count, generator):
    """Predictions of all kinds; of boxes and masks some entries are not known."""
    logits = 2 * torch.randn(count, C, generator=generator, dtype=torch.float64)
    boxes = 900 * torch.rand(count, 4, generator=generator, dtype=torch.float64)
    masks = torch.rand(count, GRID, GRID, generator=generator, dtype=torch.float64)
    for each in (boxes, masks):
        each[torch.rand(each.shape, generator=generator) < 0.3] = math.nan
    return dict(classes=logits.softmax(dim=1), boxes=boxes, masks=masks)


def _training(steps, seed=0):
    """For each step the ids, which of them take part, and the predictions."""
    generator = torch.Generator().manual_seed(seed)
    for rows in steps:
        ids = torch.tensor([row[:2] for row in rows], dtype=torch.int64).reshape(-1, 2)
        yield ids, torch.tensor([row[2] for row in rows], dtype=bool), _draw(len(rows), generator)


def _as_tensor(rows, shape):
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


@_some
@given(steps=steps_of_training)
def test_targets_and_means_are_those_of_what_was_seen(steps):
    memory, twins = Memory(_codes(), MOMENTUM), {name: NaiveMemory() for name in _codes()}
    # A byte rounds arcsin(sqrt(p)), 0 to pi / 2 in 254 steps; d p / d angle is 1 at most.
    step = math.pi / 2 / 254 / 2 / (1 - MOMENTUM)
    tolerances = {
        'classes': dict(rtol=2 * ROUNDING, atol=1e-7),
        'boxes': dict(rtol=1e-6, atol=0),
        'masks': dict(rtol=0, atol=step),
    }
    for epoch, (ids, keep, values) in enumerate(_training(steps)):
        keys = [tuple(row) for row in ids.tolist()]
        visit = memory.visit(ids, keep, epoch)
        for name, twin in twins.items():
            rows = values[name].flatten(1).tolist()
            expected = _as_tensor(twin.target(keys, keep, rows), values[name].shape)
            found = memory.target(visit, name, values[name])
            torch.testing.assert_close(found, expected, equal_nan=True, **tolerances[name])
            twin.update(keys, keep, rows)
        memory.update(visit, **values)
    assert len(memory) == len(twins['boxes'].means)


@_some
@given(steps=steps_of_training, seed=st.integers(0, 2**16), num_kept=st.integers(1, C))
def test_order_processes_and_interruptions_are_not_seen(steps, seed, num_kept):
    generator = torch.Generator().manual_seed(seed)
    plain = Memory(_codes(num_kept), MOMENTUM)
    other = Memory(_codes(num_kept), MOMENTUM)
    for epoch, (ids, keep, values) in enumerate(_training(steps, seed)):
        visit = plain.visit(ids, keep, epoch)
        expected = {name: plain.target(visit, name, values[name]) for name in values}
        plain.update(visit, **values)
        # As two processes hand their rows over, each in an order of its own.
        order = torch.randperm(len(ids), generator=generator)
        visit = other.visit(ids[order], keep[order], epoch)
        for name in values:
            found = other.target(visit, name, values[name][order])
            torch.testing.assert_close(
                found, expected[name][order], rtol=1e-12, atol=1e-12, equal_nan=True
            )
        other.update(visit, **{name: each[order] for name, each in values.items()})
        resumed = Memory(_codes(num_kept), MOMENTUM)
        resumed.load_state_dict(other.state_dict())
        other = resumed
    mine, theirs = plain.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, each in mine.items():
        torch.testing.assert_close(theirs[name], each, rtol=0, atol=0, equal_nan=True)


@_some
@given(
    sigmoid=st.booleans(),
    num_kept=st.integers(1, C),
    seed=st.integers(0, 2**16),
    visits=st.integers(2, 6),
)
def test_truncated_means_are_updated_exactly(sigmoid, num_kept, seed, visits):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(visits, 1, C, generator=generator, dtype=torch.float64)
    draws = logits.sigmoid() if sigmoid else logits.softmax(dim=2)
    memory = Memory({'classes': ClassCode(C, num_kept, sigmoid)}, MOMENTUM)
    ids, keep, expected = torch.tensor([[3, 1]]), torch.tensor([True]), None
    for epoch, p in enumerate(draws):
        visit = memory.visit(ids, keep, epoch)
        target = memory.target(visit, 'classes', p)
        if epoch:
            spread = _spread(*expected, p[0].tolist(), sigmoid)
            # Rounding may put another of two nearly equal classes among the k largest.
            torch.testing.assert_close(target[0], spread, rtol=2 * ROUNDING, atol=2 * ROUNDING)
            mean = [0.7 * old + 0.3 * new for old, new in zip(spread.tolist(), p[0].tolist())]
        else:
            assert target.isnan().all()
            mean = p[0].tolist()
        memory.update(visit, classes=p)
        order = sorted(range(C), key=lambda k: -mean[k])
        kept = {k: float(np.float16(mean[k])) for k in order[:num_kept]}
        expected = kept, sum(mean[k] for k in order[num_kept:])


def _spread(kept, rest, present, sigmoid):
    """The mean with the rest over the other classes, as the present prediction has them."""
    others = [k for k in range(C) if k not in kept]
    total = sum(present[k] for k in others)
    mean = [kept[k] if k in kept else rest * present[k] / total for k in range(C)]
    mean = [min(value, 1) for value in mean] if sigmoid else [v / sum(mean) for v in mean]
    return torch.tensor(mean, dtype=torch.float64)


@_some
@given(num_kept=st.integers(1, C), seed=st.integers(0, 2**16))
def test_what_is_stored_never_adds_to_the_divergence(num_kept, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, p = 3 * torch.randn(2, 5, C, generator=generator, dtype=torch.float64)
    mean, p = mean.softmax(dim=1), p.softmax(dim=1)
    code = ClassCode(C, num_kept)
    stored = code.decode(code.encode(mean), p)
    torch.testing.assert_close(stored.sum(dim=1), torch.ones(5, dtype=torch.float64))
    assert (_kl(stored, p) <= _kl(mean, p) + 1e-12).all()
    # No gradient moves the others among themselves.
    for row, kept in zip(stored / p - 1, mean.topk(num_kept, dim=1)[1]):
        rest = row[[k for k in range(C) if k not in kept.tolist()]]
        if len(rest):
            torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=1e-9, atol=1e-9)


def _kl(mean, p):
    return (torch.xlogy(mean, mean) - mean * p.log()).sum(dim=-1)


@pytest.mark.parametrize('start, end', [(0.9, 0.001), (0.001, 0.9), (0.3, 0.29), (0.0, 0.02)])
def test_the_mean_reaches_what_is_predicted_again_and_again(start, end):
    codes = {'classes': ClassCode(2, sigmoid=True), 'masks': MaskCode(1)}
    memory = Memory(codes, MOMENTUM)
    ids, keep = torch.tensor([[0, 0]]), torch.tensor([True])
    for epoch in range(60):
        p = torch.tensor(end if epoch else start).double()
        values = dict(classes=p.expand(1, 2), masks=p.expand(1, 1, 1))
        visit = memory.visit(ids, keep, epoch)
        targets = {name: memory.target(visit, name, each) for name, each in values.items()}
        memory.update(visit, **values)
    for name, largest in (('classes', 1e-5), ('masks', 3e-4)):
        mean, p = targets[name].flatten()[0], torch.tensor(end).double()
        both = torch.stack([mean, 1 - mean]), torch.stack([p, 1 - p])
        assert _kl(*both) < largest


def test_momentum_at_which_the_mean_would_stand_still_is_refused():
    with pytest.raises(ValueError, match=r'momentum is 0.999; expected 0 to 0.95'):
        Memory({}, momentum=0.999)
    with pytest.raises(ValueError, match='max_age is 0'):
        Memory({}, max_age=0)


def _visited(memory, epoch, value, checks=None):
    """The target of an instance that is visited, before its mean is updated."""
    ids, keep = torch.tensor([[7, 2]]), torch.tensor([True])
    values = torch.full((1, 4), value)
    checks = None if checks is None else torch.tensor([checks])
    visit = memory.visit(ids, keep, epoch, checks)
    target = memory.target(visit, 'boxes', values)
    memory.update(visit, boxes=values)
    return target[0, 0].item()


def test_entries_that_are_too_old_are_begun_anew():
    memory = Memory({'boxes': BoxCode()}, MOMENTUM, max_age=2)
    assert math.isnan(_visited(memory, 0, 10.0))
    assert _visited(memory, 2, 20.0) == 10.0
    assert math.isnan(_visited(memory, 5, 50.0))
    assert _visited(memory, 6, 0.0) == 50.0
    assert len(memory) == 1


def test_entries_of_other_data_are_begun_anew():
    memory = Memory({'boxes': BoxCode()}, MOMENTUM)
    facts = [torch.tensor([each]) for each in (3, 640, 480)]
    here, there = fingerprints(*facts).item(), fingerprints(facts[0] + 1, *facts[1:]).item()
    _visited(memory, 0, 10.0, here)
    assert _visited(memory, 1, 10.0, here) == 10.0
    assert math.isnan(_visited(memory, 2, 50.0, there))
    assert _visited(memory, 3, 0.0, there) == 50.0


def test_fingerprints_differ():
    x, y = torch.meshgrid(torch.arange(60), torch.arange(60), indexing='ij')
    short = fingerprints(x.flatten(), y.flatten()).to(torch.int16)
    # 3,600 of 65,536: as many are equal as if drawn at random, about 97.
    assert 3600 - len(short.unique()) < 150
    assert fingerprints(x[0], x[1]).tolist() != fingerprints(x[1], x[0]).tolist()


@pytest.mark.parametrize('ids', [[-1, 0], [2**43, 0], [0, -1], [0, 2**20]])
def test_ids_out_of_range_are_refused(ids):
    with pytest.raises(ValueError, match='an instance has the ids'):
        Memory({}).visit(torch.tensor([[0, 0], ids]), torch.tensor([True, True]), 0)


def test_what_does_not_fit_is_refused():
    memory = Memory({'boxes': BoxCode()})
    ids, keep = torch.tensor([[0, 0]]), torch.tensor([True])
    with pytest.raises(ValueError, match='epoch is 40000'):
        memory.visit(ids, keep, 40000)
    visit = memory.visit(ids, keep, 0)
    with pytest.raises(ValueError, match=r"'boxes' have shape \(1, 3\); expected \(1, 4\)"):
        memory.update(visit, boxes=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"there are values of \['masks'\]"):
        memory.update(visit, masks=torch.zeros(1, 4))
    with pytest.raises(ValueError, match='give the same options'):
        memory.load_state_dict(Memory(_codes()).state_dict())


def test_predictions_that_are_not_finite_are_not_taken_in():
    memory = Memory({'classes': ClassCode(3)}, MOMENTUM)
    ids, keep = torch.tensor([[0, 0], [0, 1]]), torch.tensor([True, True])
    visit = memory.visit(ids, keep, 0)
    good = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    memory.update(visit, classes=good)
    bad = good.clone()
    bad[0, 1] = math.nan
    memory.update(memory.visit(ids, keep, 1), classes=bad)
    target = memory.target(memory.visit(ids, keep, 2), 'classes', good)
    torch.testing.assert_close(target, good.double(), rtol=1e-3, atol=0)


def test_an_instance_of_two_visits_has_one_entry():
    memory = Memory({'boxes': BoxCode()}, MOMENTUM)
    ids, keep = torch.tensor([[5, 0], [5, 1]]), torch.tensor([True, True])
    visits = [memory.visit(each, keep, 0) for each in (ids, ids.flip(0))]
    for visit, value in zip(visits, (10.0, 20.0)):
        memory.update(visit, boxes=torch.full((2, 4), value))
    assert len(memory) == 2
    target = memory.target(memory.visit(ids, keep, 1), 'boxes', torch.zeros(2, 4))
    torch.testing.assert_close(target, torch.full((2, 4), 13.0).double())


def test_thousands_of_instances_are_found_again():
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(5000, generator=generator)
    memory, keep = Memory({'boxes': BoxCode()}, MOMENTUM), torch.ones(100, dtype=torch.bool)
    for epoch in range(2):
        for batch in order.view(50, 100).flip(epoch):
            ids = torch.stack([batch // 7, batch % 7], dim=1)
            boxes = batch[:, None] + torch.arange(4.0)
            visit = memory.visit(ids, keep, epoch)
            target = memory.target(visit, 'boxes', boxes)
            expected = boxes.double() if epoch else torch.full((100, 4), math.nan).double()
            torch.testing.assert_close(target, expected, equal_nan=True)
            memory.update(visit, boxes=boxes)
    assert len(memory) == 5000


def test_joined_means_of_one_prediction_are_the_earlier_ones():
    stored, present = torch.tensor([2.0, math.nan, 2.0]), torch.tensor([5.0, 5.0, 5.0])
    alone = joined_means(stored, present, torch.ones(3))
    torch.testing.assert_close(alone, stored, equal_nan=True)
    joined = joined_means(stored, present, torch.full((3,), 2.0))
    torch.testing.assert_close(joined, torch.tensor([4.0, 5.0, 4.0]))


# ---------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    'count, codes',
    [
        (1_281_167, {'classes': ClassCode(1000)}),
        (860_001, {'classes': ClassCode(80, sigmoid=True), 'boxes': BoxCode()}),
        (860_001, {'classes': ClassCode(81), 'boxes': BoxCode()}),
    ],
    ids=['ImageNet-1K', 'COCO, sigmoid', 'COCO, softmax'],
)
def test_bytes_of_the_data_sets(count, codes):
    memory = Memory(codes)
    state = {
        name: each.new_zeros(count, *each.shape[1:]) for name, each in memory.state_dict().items()
    }
    state['keys'] = torch.arange(count)
    memory.load_state_dict(state)
    del state
    # One more entry makes room for others.
    visit = memory.visit(torch.tensor([[2**40, 0]]), torch.tensor([True]), 0)
    memory.update(visit, **{name: torch.ones(1, *code.shape) for name, code in codes.items()})
    assert len(memory) == count + 1
    assert memory.num_bytes <= 150e6


def _rows(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def test_kept_classes_of_predictions_that_know_their_class():
    """100 logits with a standard deviation of 2, 7 more for one class, noise of 0.8."""
    shared, own, other = (_rows((64, 100), seed) for seed in range(3))
    shared[:, 0] += 7
    mean, p = ((shared + 0.4 * each).softmax(dim=1) for each in (own, other))

    def divergence(mean, p):
        return _kl(mean, p).sum()

    kept = smallest_kept(mean, p, divergence)
    whole = divergence(mean, p)
    change, worse = (
        1 - divergence(as_stored(ClassCode(100, each), mean, p), p) / whole
        for each in (kept, kept - 1)
    )
    assert abs(change) < 0.01 <= worse
    assert 1 < kept < 100
