"""Agreement of replicas: against naive twins, the training term, and at the extremes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency
from lt_mm.core.measures.agreement import (
    SMALLEST_COMPLEMENT,
    SMALLEST_PROBABILITY,
    activation_of,
    common_labels,
    decided_labels,
    equal_groups,
    group_box_kl,
    group_iou,
    group_kl,
    group_means,
    match_boxes,
    means_by_key,
    pair_agreement,
    pair_difference,
    paired_ids,
)
from tests import reference, reference_losses

_some = settings(max_examples=40, deadline=None)

# Few values, so that groups form; a huge one, so that no id can serve as an index.
some_ids = st.lists(st.sampled_from([-3, -1, 0, 1, 2, 7, 2**62]), max_size=30)
seeds = st.integers(0, 2**16)


def _tensor(ids):
    return torch.tensor(ids, dtype=torch.int64)


def _softmax(n, num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, num_classes, dtype=torch.float64, generator=generator)
    return logits, logits.softmax(dim=1)


@_some
@given(some_ids, seeds, st.integers(1, 5))
def test_values_are_those_of_the_naive_twins(ids, seed, num_classes):
    logits, p = _softmax(len(ids), num_classes, seed)
    groups = reference.groups_of(ids)
    group_ids = _tensor(ids)
    assert paired_ids(group_ids).tolist() == list(groups)
    expected = [reference.mean_kl(p[rows].tolist()) for rows in groups.values()]
    np.testing.assert_allclose(group_kl(p, group_ids), expected, atol=1e-12)
    sigmoid = logits.sigmoid()
    expected = [reference.mean_bernoulli_kl(sigmoid[rows].tolist()) for rows in groups.values()]
    np.testing.assert_allclose(group_kl(sigmoid, group_ids, 'sigmoid'), expected, atol=1e-9)
    means = [np.mean(p[rows].numpy(), axis=0) for rows in groups.values()]
    np.testing.assert_allclose(
        group_means(p, group_ids), np.reshape(means, (-1, num_classes)), atol=1e-12
    )
    labels = p.argmax(dim=1)
    assert pair_agreement(labels, group_ids).tolist() == [
        reference.agreeing_pairs(labels[rows].tolist()) for rows in groups.values()
    ]
    assert common_labels(labels, group_ids).tolist() == [
        reference.most_common(labels[rows].tolist()) for rows in groups.values()
    ]


@_some
@given(some_ids, seeds)
def test_kl_is_the_training_term(ids, seed):
    """Weighted by the sizes of the groups: the term is a mean over predictions."""
    logits, p = _softmax(len(ids), 4, seed)
    sizes = torch.tensor([len(rows) for rows in reference.groups_of(ids).values()])
    for kl, term in (
        (group_kl(p, _tensor(ids)), categorical_consistency(logits, _tensor(ids))),
        (
            group_kl(logits.sigmoid(), _tensor(ids), 'sigmoid'),
            bernoulli_consistency(logits, _tensor(ids)),
        ),
    ):
        assert float((kl * sizes).sum()) / max(len(ids), 1) == pytest.approx(float(term), abs=1e-9)


@_some
@given(seeds, st.integers(2, 6), st.integers(1, 6))
def test_equal_replicas_agree_in_everything(seed, num_replicas, num_sources):
    _, p = _softmax(num_sources, 5, seed)
    ids = torch.arange(num_sources).repeat(num_replicas)
    copies = p.repeat(num_replicas, 1)
    assert group_kl(copies, ids).abs().max() < 1e-12
    assert group_kl(copies, ids, 'sigmoid').abs().max() < 1e-12
    assert pair_agreement(decided_labels(copies, 'softmax'), ids).tolist() == ([1.0] * num_sources)
    boxes = _boxes(num_sources, seed)
    assert group_iou(boxes.repeat(num_replicas, 1), ids).tolist() == pytest.approx(
        [1.0] * num_sources
    )
    assert group_box_kl(boxes.repeat(num_replicas, 1), ids) == pytest.approx(0, abs=1e-9)


@_some
@given(some_ids, seeds, st.randoms(use_true_random=False))
def test_order_of_predictions_does_not_matter(ids, seed, random):
    _, p = _softmax(len(ids), 3, seed)
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled, labels = _tensor(ids)[order], p.argmax(dim=1)
    torch.testing.assert_close(group_kl(p[order], shuffled), group_kl(p, _tensor(ids)))
    torch.testing.assert_close(
        pair_agreement(labels[order], shuffled), pair_agreement(labels, _tensor(ids))
    )


def test_hand_computed_values():
    ids = _tensor([5, 2, 5, 5, 2, 9])
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.1, 0.9]])
    mean = 2 / 3
    # Of the first replica 1/3 nat times the logarithm of the smallest probability.
    expected = (
        mean * math.log(mean)
        + (1 - mean) * math.log(1 - mean)
        - (2 * math.log(0.5) + (1 - mean) * math.log(SMALLEST_PROBABILITY)) / 3
    )
    assert group_kl(p, ids).tolist() == pytest.approx([0, expected])
    labels = _tensor([0, 1, 0, 1, 2, 4])
    assert pair_agreement(labels, ids).tolist() == [0, pytest.approx(1 / 3)]
    assert common_labels(labels, ids).tolist() == [1, 0]


def test_certain_predictions_give_finite_values():
    ids = _tensor([0, 0])
    opposite = torch.eye(2)
    assert 0 < float(group_kl(opposite, ids)) < 100
    value = float(group_kl(opposite, ids, 'sigmoid'))
    # Two choices: half a nat of each goes to what the other says is impossible.
    expected = (
        2 * math.log(0.5)
        - 0.5 * math.log(SMALLEST_PROBABILITY)
        - 0.5 * math.log(SMALLEST_COMPLEMENT)
    )
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('ids', [[], [3], [0, 1, -1, -1]])
def test_without_a_pair_there_are_no_values(ids):
    _, p = _softmax(len(ids), 3, 0)
    group_ids, boxes = _tensor(ids), _boxes(len(ids), 0)
    for values in (
        group_kl(p, group_ids),
        pair_agreement(group_ids, group_ids),
        common_labels(group_ids.clamp(min=0), group_ids),
        paired_ids(group_ids),
        group_iou(boxes, group_ids),
        pair_difference(group_ids.float(), group_ids),
    ):
        assert values.shape == (0,)
    assert group_means(p, group_ids).shape == (0, 3)
    assert group_box_kl(boxes, group_ids) is None


def test_decisions():
    p = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0], [0.7, 0.2, 0.1]])
    assert decided_labels(p, 'softmax').tolist() == [0, 2, 0, 0]
    sets = decided_labels(p, 'sigmoid').tolist()
    assert sets[0] == sets[3] and len(set(sets)) == 3
    assert activation_of(p) == 'softmax' and activation_of(p * 0.9) == 'sigmoid'
    for function in (decided_labels, lambda p, name: group_kl(p, _tensor([0] * 4), name)):
        with pytest.raises(ValueError, match='softmax.*sigmoid'):
            function(p, 'tanh')
    with pytest.raises(ValueError, match=r'\(4, 3\).*\(2,\)'):
        group_kl(p, _tensor([0, 0]))


@pytest.mark.parametrize(
    'ids, kept, number',
    [
        ([4, 4, 7, 7, 4, 4], [1, 1, 1, 1, 0, 0], 2),  # 4 and 2 are equally common
        ([4, 7, 4, 7, 9, 9, 4], [1, 1, 1, 1, 1, 1, 0], 2),  # a padded source
        ([1, 1, 1, 2, 2, 2, 3, 3], [1] * 8, 3),  # one has lost a replica
        ([1, 2, 3], [1, 1, 1], 1),
        ([], [], 1),
    ],
)
def test_equal_groups_leave_out_what_was_repeated(ids, kept, number):
    found, num_replicas = equal_groups(_tensor(ids))
    assert found.tolist() == [bool(keep) for keep in kept] and num_replicas == number


def test_equal_groups_of_a_given_size():
    found, _ = equal_groups(_tensor([4, 7, 4, 7, 4]), 1)
    assert found.tolist() == [True, True, False, False, False]


def _boxes(n, seed):
    draw = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)).double()
    return torch.cat([100 * draw[:, :2], 100 * draw[:, :2] + 5 + 40 * draw[:, 2:]], dim=1)


@_some
@given(seeds)
def test_boxes_are_matched_as_the_naive_twin_matches_them(seed):
    """Three replicas of each of two sources, in mixed order, one without boxes."""
    rng = np.random.default_rng(seed)
    places = _boxes(3, seed)
    boxes = [
        places[:size] + torch.from_numpy(rng.normal(0, 4, (size, 4))) for size in (3, 2, 3, 0, 1, 3)
    ]
    source_ids = [8, 3, 8, 3, 8, 3]
    groups = match_boxes(boxes, _tensor(source_ids), 0.4)
    split = groups.split([len(own) for own in boxes])
    expected = []
    for source in (3, 8):
        members = [row for row, own in enumerate(source_ids) if own == source]
        padded = [boxes[row].tolist() + [[0] * 4] * (3 - len(boxes[row])) for row in members]
        valid = [[column < len(boxes[row]) for column in range(3)] for row in members]
        ids = reference_losses.iou_groups(padded, [[0] * 3] * 3, valid, [[0, 1, 2]], 0.4)
        expected += [
            (source, ids[k][column])
            for k, row in enumerate(members)
            for column in range(len(boxes[row]))
        ]
    ours = [
        int(group)
        for source in (3, 8)
        for row in range(6)
        if source_ids[row] == source
        for group in split[row]
    ]
    assert reference_losses.same_partition(ours) == [expected.index(own) for own in expected]


@_some
@given(some_ids, seeds)
def test_difference_of_pairs(ids, seed):
    values = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    expected = []
    for rows in reference.groups_of(ids).values():
        pairs = [abs(values[i] - values[j]) for i, j in itertools.combinations(rows, 2)]
        expected.append(sum(pairs) / len(pairs))
    found = pair_difference(torch.tensor(values), _tensor(ids))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@_some
@given(some_ids, seeds)
def test_overlap_with_the_mean_box(ids, seed):
    boxes = _boxes(len(ids), seed)
    expected = []
    for rows in reference.groups_of(ids).values():
        own = boxes[rows].tolist()
        mean = [sum(side) / len(own) for side in zip(*own)]
        expected.append(sum(reference_losses.iou(box, mean) for box in own) / len(own))
    np.testing.assert_allclose(group_iou(boxes, _tensor(ids)), expected, atol=1e-5)


def test_boxes_match_whatever_their_number():
    assert match_boxes([], _tensor([])).tolist() == []
    assert match_boxes([torch.zeros(0, 4)] * 2, _tensor([1, 1])).tolist() == []
    one = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert match_boxes([one, one], _tensor([1, 2])).tolist() == [0, 1]
    assert match_boxes([one, one[:0], one], _tensor([1, 1, 1])).tolist() == [0, 0]


def test_means_by_key():
    keys, means, counts = means_by_key(torch.tensor([1.0, 2.0, 4.0]), _tensor([7, -1, 7]))
    assert (keys.tolist(), means.tolist(), counts.tolist()) == ([-1, 7], [2, 2.5], [1, 2])
    assert all(len(part) == 0 for part in means_by_key(torch.zeros(0), _tensor([])))
