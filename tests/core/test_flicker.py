"""Flicker: against naive twins, what gives 0, and what must not matter."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_mm.core.geometry import boxes_to_source, map_boxes, pan_zoom_matrices
from lt_mm.core.measures.flicker import (
    BoxFlicker,
    Detections,
    box_flicker,
    consecutive_kl,
    label_changes,
)

_some = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**16)
SIZE = 100.0


def detections(generator, count, base=None):
    """Detections of a frame, those of ``base`` a little off where it is given."""
    low = generator.uniform(5, 60, (count, 2))
    boxes = np.concatenate([low, low + generator.uniform(10, 35, (count, 2))], axis=1)
    labels, scores = generator.integers(0, 2, count), generator.uniform(0.5, 1, count)
    if base is not None:
        kept = generator.random(len(base.boxes)) < 0.8
        boxes = np.concatenate([base.boxes.numpy()[kept] + generator.normal(0, 2), boxes])
        labels = np.concatenate([base.labels.numpy()[kept], labels])
        scores = np.concatenate([base.scores.numpy()[kept] * 0.9, scores])
    window = np.array([*generator.uniform(0, 15, 2), *generator.uniform(85, 100, 2)])
    return Detections(*map(torch.from_numpy, (boxes, labels, scores, window)))


def naive_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def naive_is_inside(box, windows, margin):
    return all(
        box[k] > w[k] + margin * (w[k + 2] - w[k])
        and box[k + 2] < w[k + 2] - margin * (w[k + 2] - w[k])
        for w in windows
        for k in (0, 1)
    )


def naive_box_flicker(frames, threshold, margin):
    total = dict.fromkeys(BoxFlicker._fields, 0)
    for before, after in itertools.pairwise(frames):
        first, second = before.boxes.tolist(), after.boxes.tolist()
        windows = before.window.tolist(), after.window.tolist()
        is_inside = functools.partial(naive_is_inside, windows=windows, margin=margin)

        pairs = sorted(
            ((naive_iou(a, b), i, j) for i, a in enumerate(first) for j, b in enumerate(second)),
            key=lambda row: (-row[0], *row[1:]),
        )
        rows, columns = set(), set()
        for iou, i, j in pairs:
            if iou < threshold or i in rows or j in columns or before.labels[i] != after.labels[j]:
                continue
            rows.add(i)
            columns.add(j)
            a, b = first[i], second[j]
            if not (is_inside(a) and is_inside(b)):
                continue
            total['matched'] += 1
            sides = [((a[k + 2] - a[k]), (b[k + 2] - b[k])) for k in (0, 1)]
            means = [sum(side) / 2 for side in sides]
            shift = [(a[k] + a[k + 2]) / 2 - (b[k] + b[k + 2]) / 2 for k in (0, 1)]
            total['center_jitter'] += math.hypot(*shift) / math.sqrt(means[0] * means[1])
            total['size_jitter'] += sum(abs(x - y) / m for (x, y), m in zip(sides, means)) / 2
            total['score_swing'] += abs(float(before.scores[i]) - float(after.scores[j]))
        total['vanishing'] += sum(is_inside(a) for i, a in enumerate(first) if i not in rows)
        total['appearing'] += sum(is_inside(b) for j, b in enumerate(second) if j not in columns)
    return total


@_some
@given(seeds, st.integers(0, 6), st.sampled_from([0.0, 0.02, 0.1]))
def test_box_flicker_is_that_of_the_naive_twin(seed, count, margin):
    generator = np.random.default_rng(seed)
    frames = [detections(generator, count)]
    for _ in range(3):
        frames.append(detections(generator, 1, frames[-1]))
    found = box_flicker(frames, 0.4, margin)
    assert found._asdict() == pytest.approx(naive_box_flicker(frames, 0.4, margin), abs=1e-9)
    # The order of the detections does not matter, to the last bit.
    shuffled = []
    for frame in frames:
        order = torch.from_numpy(generator.permutation(len(frame.boxes)))
        shuffled.append(Detections(*(each[order] for each in frame[:3]), window=frame.window))
    assert box_flicker(shuffled, 0.4, margin) == found


@_some
@given(seeds, st.integers(1, 6), st.booleans())
def test_what_stays_in_the_source_does_not_flicker(seed, count, with_twins):
    """Whatever part of the image the frames show, and however it was restored."""
    generator = np.random.default_rng(seed)
    own = detections(generator, count)
    if with_twins:
        own = Detections(*(torch.cat([each, each]) for each in own[:3]), window=own.window)
    frames = []
    for matrix in torch.from_numpy(pan_zoom_matrices((100, 100), 5, (0.6, 0.9), generator)):
        seen = map_boxes(own.boxes, matrix.expand(len(own.boxes), 3, 3))
        restored = boxes_to_source(seen, matrix.expand(len(seen), 3, 3))
        window = boxes_to_source(torch.tensor([0, 0, SIZE, SIZE]).double(), matrix)
        frames.append(Detections(restored, own.labels, own.scores, window))
    found = box_flicker(frames)
    assert (found.appearing, found.vanishing) == (0, 0)
    assert found[3:] == pytest.approx((0, 0, 0), abs=1e-9)
    if not found.matched:
        assert set(found.rates().values()) == {None}


def test_what_the_border_cuts_off_does_not_flicker():
    window = torch.tensor([0.0, 0, 100, 100])
    moved = torch.tensor([20.0, 0, 120, 100])
    at_border, inside = [1.0, 30, 31, 60], [50.0, 30, 80, 60]  # the first one leaves the frame

    def frame(boxes, window):
        boxes = torch.tensor(boxes).view(-1, 4)
        return Detections(boxes, torch.zeros(len(boxes)), torch.ones(len(boxes)), window)

    found = box_flicker([frame([at_border, inside], window), frame([inside], moved)])
    assert found == BoxFlicker(matched=1)
    found = box_flicker([frame([at_border, inside], window), frame([], moved)])
    assert found.rates()['vanishing'] == found.rates()['blinking'] == 1
    no_area = [50.0, 30, 50, 60]
    assert box_flicker([frame([no_area], window), frame([], window)]) == BoxFlicker()


@_some
@given(seeds, st.integers(2, 6), st.integers(2, 5))
def test_class_flicker_is_that_of_the_naive_twin(seed, num_frames, num_classes):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (num_frames, num_classes)))
    p = logits.softmax(dim=1)
    rows = p.tolist()
    kl = [sum(x * math.log(x / y) for x, y in zip(a, b)) for a, b in itertools.pairwise(rows)]
    np.testing.assert_allclose(consecutive_kl(p), kl, atol=1e-12)
    changes = [a.index(max(a)) != b.index(max(b)) for a, b in itertools.pairwise(rows)]
    assert label_changes(p).tolist() == changes
    same = p[:1].expand(num_frames, -1)
    assert not label_changes(same).any() and not consecutive_kl(same).any()
    q = logits.sigmoid()
    bernoulli = [
        sum(x * math.log(x / y) + (1 - x) * math.log((1 - x) / (1 - y)) for x, y in zip(a, b))
        for a, b in zip(q.tolist(), q[1:].tolist())
    ]
    np.testing.assert_allclose(consecutive_kl(q, 'sigmoid'), bernoulli, atol=1e-6)


@_some
@given(seeds, st.integers(2, 20), st.integers(10, 60), st.integers(10, 60))
def test_windows_stay_in_the_image_and_move_slowly(seed, num_frames, height, width):
    matrices = pan_zoom_matrices(
        (height, width), num_frames, (0.6, 0.9), np.random.default_rng(seed)
    )
    whole = torch.tensor([0, 0, width, height]).double().expand(num_frames, 4)
    windows = boxes_to_source(whole, torch.from_numpy(matrices)).numpy()
    shares = windows / [width, height, width, height]
    assert (shares > -1e-9).all() and (shares < 1 + 1e-9).all()
    sides = shares[:, 2:] - shares[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])  # the proportions of the image
    assert sides.min() > 0.6 - 1e-9 and sides.max() < 0.9 + 1e-9
    steps = np.abs(np.diff(shares, axis=0)).max()
    assert 0 < steps <= 2.2 / max(num_frames - 1, 2)
