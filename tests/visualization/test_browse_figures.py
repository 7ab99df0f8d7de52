"""Figures of replicas: the boxes that are drawn, and the tiles of failures."""

import matplotlib
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from lt_mm.datasets.replica_failures import find_failures
from lt_mm.datasets.source_catalog import sources_and_replicas
from lt_mm.visualization.browse_figures import failures_figure, source_figure
from lt_mm.visualization.drawing import colors, pixels_of
from tests.datasets.test_source_catalog import CROP, FLIP, RESIZE, counted, drawn
from tests.datasets.transforms.pipeline_data import BOXES, make_sample, mixed_dataset


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
    # Annotations, two replicas, and the names.
    assert np.abs(found.reshape(4, 3, 4) - expected).max() < 0.01
    for axes, replica in zip(figure.axes[1:], replicas):
        np.testing.assert_allclose(rectangles(axes), replica.instances.boxes)
        assert '-2.000' in axes.get_xlabel()
    pixels = pixels_of(figure)
    for color in colors(3):
        is_colored = np.abs(pixels - np.array(color) * 255).max(axis=-1) < 8
        assert is_colored.sum() > 300


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
    many = failures_figure(found * 50, 0.3)
    assert sum(bool(axes.get_title()) for axes in many.axes) == 30
    assert many.get_suptitle().startswith('30 of 100')
    assert failures_figure([], 0.3).get_suptitle().startswith('no failures')


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
