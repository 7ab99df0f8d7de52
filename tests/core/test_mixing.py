"""Grouped mixing against loops over images, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_mm.core.mixing import (
    average_over_replicas,
    first_replicas,
    mix,
    mixing_partners,
    number_sources,
    paste_box,
    replicas_agree,
    square_masks,
)

# Groups of unequal size, not contiguous, ids in no order.
IDS = [9, 4, 9, 7, 4, 9, 2]
BATCHES = st.lists(st.integers(0, 5), min_size=1, max_size=14)


def rows_by_source(ids):
    """Rows of each source; sources in the order of their first replica."""
    groups = {}
    for row, source in enumerate(ids):
        groups.setdefault(source, []).append(row)
    return list(groups.values())


def naive_partners(ids, permutation):
    groups, partners = rows_by_source(ids), [None] * len(ids)
    for number, rows in enumerate(groups):
        others = groups[permutation[number]]
        for replica, row in enumerate(rows):
            partners[row] = others[replica % len(others)]
    return partners


@st.composite
def batches_with_permutation(draw):
    ids = draw(BATCHES)
    return ids, draw(st.permutations(range(len(set(ids)))))


@given(batches_with_permutation())
def test_partners(case):
    ids, permutation = case
    found = mixing_partners(torch.tensor(ids), torch.tensor(permutation))
    assert found.tolist() == naive_partners(ids, permutation)


@given(batches_with_permutation())
def test_replicas_share_their_partner_source_and_use_it_evenly(case):
    """The same statement without the naive twin, which could share a mistake."""
    ids, permutation = torch.tensor(case[0]), torch.tensor(case[1])
    partners = mixing_partners(ids, permutation)
    for source in ids.unique():
        chosen = partners[ids == source]
        assert len(ids[chosen].unique()) == 1
        available = int((ids == ids[chosen[0]]).sum())
        assert len(chosen.unique()) == min(len(chosen), available)
    if len(ids) == len(ids.unique()):
        assert torch.equal(partners, permutation)


def test_partners_by_hand():
    # Sources in order of appearance: 9 (rows 0, 2, 5), 4 (1, 4), 7 (3), 2 (6).
    found = mixing_partners(torch.tensor(IDS), torch.tensor([1, 0, 3, 2]))
    assert found.tolist() == [1, 0, 4, 6, 2, 1, 3]


def test_one_source_is_mixed_with_itself():
    assert mixing_partners(torch.tensor([3, 3, 3]), torch.tensor([0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize('entries', [[0], [0, 1, 2], [0, 1, 2, 3, 4]])
def test_permutation_of_another_number_of_sources(entries):
    with pytest.raises(ValueError, match=f'has {len(entries)} entries and the batch 4 sources'):
        mixing_partners(torch.tensor(IDS), torch.tensor(entries))


@given(BATCHES)
def test_numbers_and_first_rows(ids):
    groups = rows_by_source(ids)
    numbers, first = [None] * len(ids), [None] * len(ids)
    for number, rows in enumerate(groups):
        for row in rows:
            numbers[row], first[row] = number, rows[0]
    assert number_sources(torch.tensor(ids)).tolist() == numbers
    assert first_replicas(torch.tensor(ids)).tolist() == first


def test_mix():
    images = torch.rand(7, 3, 5, 4, dtype=torch.float64)
    partners, lam = [1, 0, 4, 6, 2, 1, 3], 0.3
    found = mix(images, torch.tensor(partners), lam)
    for row, partner in enumerate(partners):
        torch.testing.assert_close(found[row], 0.3 * images[row] + 0.7 * images[partner])


@pytest.mark.parametrize('box', [(1, 4, 0, 3), (0, 5, 0, 4), (2, 2, 1, 3), (4, 5, 3, 4)])
def test_paste_box(box):
    images = torch.rand(3, 2, 5, 4, dtype=torch.float64)
    before, partners = images.clone(), [2, 0, 1]
    found = paste_box(images, torch.tensor(partners), box)
    top, bottom, left, right = box
    for row in range(3):
        for y in range(5):
            for x in range(4):
                inside = top <= y < bottom and left <= x < right
                source = partners[row] if inside else row
                assert torch.equal(found[row, :, y, x], before[source, :, y, x])
    assert torch.equal(images, before)  # the argument stays


@pytest.mark.parametrize('length', [1, 2, 3, 6, 40])
def test_square_masks(length):
    height, width = 5, 7
    centers = [(y, x) for y in range(height) for x in range(width)]
    found = square_masks(torch.tensor(centers), length, (height, width))
    for mask, (cy, cx) in zip(found, centers):
        top, left = cy - length // 2, cx - length // 2
        expected = [
            [top <= y < top + length and left <= x < left + length for x in range(width)]
            for y in range(height)
        ]
        assert mask.tolist() == expected
        assert mask[cy, cx]
    inner = found[centers.index((2, 3))]
    if length <= 3:  # far enough from the border to be whole
        assert inner.sum() == length**2


@given(BATCHES)
def test_average_over_replicas(ids):
    scores = torch.rand(len(ids), 4, dtype=torch.float64)
    source_ids = torch.tensor(ids)
    found = average_over_replicas(scores, source_ids)
    for row, source in enumerate(ids):
        replicas = [scores[other] for other in range(len(ids)) if ids[other] == source]
        torch.testing.assert_close(found[row], sum(replicas) / len(replicas))
    assert replicas_agree(found, source_ids)


def test_average_carries_gradient_to_every_replica():
    scores = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(4, 2, dtype=torch.float64)
    (average_over_replicas(scores, torch.tensor([1, 1, 1, 5])) * weights).sum().backward()
    expected = torch.cat([weights[:3].mean(dim=0).expand(3, 2), weights[3:]])
    torch.testing.assert_close(scores.grad, expected)


def test_replicas_agree_bit_for_bit():
    ids = torch.tensor([5, 1, 5, 1])
    scores = torch.tensor([[0.1, 0.9], [1.0, 0.0], [0.1, 0.9], [1.0, 0.0]])
    assert replicas_agree(scores, ids)
    assert not replicas_agree(scores, torch.tensor([5, 5, 1, 1]))
    scores[2, 0] = scores[2, 0].nextafter(torch.tensor(1.0))
    assert not replicas_agree(scores, ids)
