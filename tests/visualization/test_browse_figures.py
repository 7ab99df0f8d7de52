"""Figures of replicas: the boxes that are drawn, and the tiles of failures."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from lt_mm.datasets.replica_failures import find_failures
from lt_mm.datasets.source_catalog import sources_and_replicas
from lt_mm.visualization.browse_figures import source_figure
from lt_mm.visualization.drawing import colors, pixels_of
from lt_mm.visualization.failures_figure import failures_figure
from tests.datasets.test_source_catalog import CROP, FLIP, MOSAIC, RESIZE, counted, drawn
from tests.datasets.transforms.pipeline_data import (
    BOXES,
    MadeDataset,
    make_sample,
    mixed_dataset,
    pipeline_of,
)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def rectangles(axes):
    """The boxes drawn, (n, 4): all rectangles of an axes."""
    bounds = [
        patch.get_bbox().extents
        for patch in axes.patches
        if isinstance(patch, matplotlib.patches.Rectangle)
    ]
    return np.array(bounds).reshape(-1, 4)


def test_the_boxes_in_the_picture():
    source, replicas = drawn([RESIZE, FLIP])
    figure = source_figure(source, replicas)
    found = rectangles(figure.axes[0])
    expected = np.array(BOXES, dtype=float)
    # Annotations and two replicas.
    assert np.abs(found.reshape(3, 3, 4) - expected).max() < 0.01
    for axes, replica in zip(figure.axes[1:], replicas):
        np.testing.assert_allclose(rectangles(axes), replica.instances.boxes)
        assert '-2.000' in axes.get_xlabel()
    pixels = pixels_of(figure)
    for color in colors(3):
        is_colored = np.abs(pixels - np.array(color) * 255).max(axis=-1) < 8
        assert is_colored.sum() > 300


def extents(figure, texts):
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in texts]


def test_frames_are_thin_and_names_stand_beside_them():
    """An object of a few pixels in a corner stays visible, and the titles stay legible."""
    small = [[0, 0, 6, 5], [74, 0, 80, 6], [40, 30, 46, 35], [0, 54, 6, 60]]
    sample = make_sample(small[:3], labels=(0, 1, 2))
    sample['instances'].append(dict(sample['instances'][0], bbox=[float(v) for v in small[3]]))
    dataset = MadeDataset([sample], [pipeline_of([FLIP])])
    figure = source_figure(*drawn([], dataset=dataset))
    for axes in figure.axes:
        assert {patch.get_linewidth() for patch in axes.patches} <= {0.9, 1.8}
        assert [text.get_text().split()[0] for text in axes.texts] == ['#0', '#1', '#2', '#3']
        title, *names = extents(figure, [axes.title, *axes.texts])
        frames = [patch.get_window_extent() for patch in axes.patches]
        picture = axes.get_window_extent()
        for name in names:
            assert not name.overlaps(title)
            # Neither on an object nor outside the picture.
            assert not any(name.padded(-1).overlaps(frame) for frame in frames[:4])
            assert picture.y0 <= name.y0 and name.y1 <= picture.y1 + 1


def test_many_annotations_are_numbered():
    boxes = [(x, y, x + 6, y + 6) for x in range(0, 70, 14) for y in (2, 22, 42)]
    sample = make_sample(boxes[:3], labels=(1, 1, 1))
    sample['instances'] *= 5
    source, replicas = drawn([], dataset=MadeDataset([sample], [pipeline_of([])]))
    names = [text.get_text() for text in source_figure(source, replicas).axes[0].texts]
    assert names == [f'#{row}' for row in range(15)]


def test_titles_say_what_was_done():
    chosen = dict(type='RandomChoice', transforms=[[dict(type='Color', prob=1.0), FLIP]])
    undrawn = dict(type='RandomApply', transforms=[FLIP], prob=0.0)
    source, replicas = drawn([RESIZE, chosen, undrawn], num_replicas=2)
    for number, axes in enumerate(source_figure(source, replicas).axes[1:], start=1):
        assert axes.get_title().split('\n') == [
            f'replica {number}',
            'Resize, RandomChoice (Color, RandomFlip)',
        ]


def test_a_mosaic_says_which_image_lies_where():
    samples = [make_sample(shape=(60, 80)) for _ in range(4)]
    dataset = mixed_dataset(samples, [], [MOSAIC], True)
    ((source, replicas),) = sources_and_replicas(dataset, 1, 1, seed=1)
    instances, axes = replicas[0].instances, source_figure(source, replicas).axes[1]
    outlines = [p for p in axes.patches if not isinstance(p, matplotlib.patches.Rectangle)]
    shown = dict.fromkeys(instances.source_ids[:, 0].tolist())
    letters = 'ABCD'[: len(outlines)]
    assert ''.join(text.get_text() for text in axes.texts).startswith(letters)
    lines = axes.get_xlabel().split('\n')
    assert lines[1].startswith('A  this source: #') and len(lines) == 1 + len(outlines)
    for other in set(shown) - {source.source_id}:
        # It may be there twice.
        counts = [
            int(line.split(': ')[1].split()[0]) for line in lines[2:] if f' {other}: ' in line
        ]
        assert sum(counts) == len(instances.of(other)) > 0
    # Every instance lies in the outline of an image.
    corners = [outline.get_xy() for outline in outlines]
    for box in instances.boxes.numpy():
        assert any(
            (each.min(axis=0) - 0.01 <= box[:2]).all()
            and (box[2:] <= each.max(axis=0) + 0.01).all()
            for each in corners
        )


def test_the_tiles_of_failures():
    source, replicas = drawn([CROP], num_replicas=1)
    found = find_failures(source, replicas, 0.3)
    figure = failures_figure(found, 0.3)
    tiles = [axes for axes in figure.axes if axes.get_title()]
    titles = ' '.join(axes.get_title().replace('\n', ' ') for axes in tiles)
    assert len(tiles) == 2
    assert '#1 class 0, replica 1: lost: moved out of the image' in titles
    assert '#2 class 7, replica 1: 15.8% visible' in titles
    (lost,) = [axes for axes in tiles if 'lost' in axes.get_title()]
    # Room for where it went: columns 44 to 72 of an image that has 26.
    assert lost.get_xlim()[1] > 52 - 1e-6


def test_the_same_failure_is_drawn_once():
    source, replicas = drawn([CROP], num_replicas=3)
    figure = failures_figure(find_failures(source, replicas, 0.3), 0.3)
    titles = [axes.get_title().replace('\n', ' ') for axes in figure.axes if axes.get_title()]
    assert len(titles) == 2 and all('replica 1 (and 2 more)' in title for title in titles)
    assert figure.get_suptitle().startswith('6 instances of replicas are lost')
    assert '2 of 2 different ones are drawn' in figure.get_suptitle()


def test_of_many_failures_some_of_each_kind_and_source_are_drawn():
    source, replicas = drawn([CROP], num_replicas=1)
    sources = [dataclasses.replace(source, source_id=n, name=f'source {n}.') for n in range(20)]
    found = [failure for each in sources for failure in find_failures(source, replicas, 0.3)]
    found = [
        dataclasses.replace(failure, source=sources[number // 2])
        for number, failure in enumerate(found)
    ]
    # Of the first source a hundred more, which would leave no room for the others.
    rows = [dataclasses.replace(found[1], row=1, kinds=(kind,)) for kind in ('a', 'b')]
    figure = failures_figure([*rows * 50, *found], 0.3)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 30 and '30 of 42 different ones' in figure.get_suptitle()
    assert len({title.split('.')[0] for title in titles}) == 14


def test_no_failures_are_told_in_the_picture():
    figure = failures_figure([], 0.3)
    (text,) = figure.texts
    assert text.get_text().startswith('no failures: every instance is in every replica')
    assert pixels_of(figure).std() > 10  # not blank


def test_masks_that_are_pasted():
    samples = [make_sample() for _ in range(3)]
    dataset = mixed_dataset(samples, [], [dict(type='CopyPaste')], True, masks='bitmap')
    ((source, replicas),) = sources_and_replicas(dataset, 1, 2, seed=0)
    assert source.masks.shape == (3, 60, 80)
    assert replicas[0].instances.masks.shape[1:] == (60, 80)
    pixels_of(source_figure(source, replicas))


def test_an_image_that_takes_anothers_place():
    source, (first, second) = drawn([FLIP])
    second.source_id = 5
    assert find_failures(source, [first, second], 0.3) == []
    assert counted(source, [first, second], []).instances == 3
    figure = source_figure(source, [first, second])
    assert figure.axes[2].get_title().startswith('replica 2: source 5 in its place')
