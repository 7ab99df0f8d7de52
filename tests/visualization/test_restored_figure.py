"""The figure of predictions restored to their source."""

import numpy as np
import pytest
import torch

from lt_mm.apis.draw_replicas import nothing_drawn
from lt_mm.visualization.drawing import GREY, colors
from lt_mm.visualization.restored_figure import PredictedReplica, restored_figure

ANNOTATED = torch.tensor([[10.0, 10, 30, 40], [50, 20, 70, 50]])


def replica(boxes, group_ids, shift):
    """A replica that is its source, moved to the right."""
    offset = torch.tensor([shift, 0.0, shift, 0.0])
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return PredictedReplica(
        np.zeros((60, 100, 3), np.uint8),
        boxes + offset,
        boxes,
        [f'a {row}' for row in range(len(boxes))],
        torch.tensor(group_ids, dtype=torch.int64),
        ANNOTATED + offset,
    )


def drawn(axes):
    """What is drawn in an axes: left side, colour, width and dash of each box."""
    return [
        (patch.get_x(), patch.get_edgecolor()[:3], patch.get_linewidth(), patch.get_linestyle())
        for patch in axes.patches
    ]


def test_annotations_and_unpaired_predictions_are_drawn():
    first = replica([[11, 10, 30, 40], [80, 0, 90, 9]], [0, 1], 5.0)
    figure = restored_figure(first.image, ANNOTATED, [first, replica([[12, 10, 31, 40]], [0], 9.0)])
    source, *views = figure.axes
    white, (blue,) = (1.0, 1.0, 1.0), colors(1)
    assert drawn(source) == [
        (10, white, 1.8, 'solid'),
        (50, white, 1.8, 'solid'),
        (11, blue, 1.3, 'solid'),
        (80, GREY, 0.9, '--'),
        (12, blue, 1.3, 'solid'),
    ]
    assert [each[:2] for each in drawn(views[0])] == [
        (15, white),
        (55, white),
        (16, blue),
        (85, GREY),
    ]
    assert [each[:2] for each in drawn(views[1])] == [(19, white), (59, white), (21, blue)]
    # A line beneath makes them visible on any ground: black below white, white below grey.
    (effect,) = source.patches[3].get_path_effects()
    assert effect._gc == dict(linewidth=pytest.approx(1.7), foreground='white')
    title = source.get_title().replace('\n', ' ')
    assert '2 annotations (white); 3 predictions of 2 replicas restored, 2 paired' in title
    assert '1 unpaired (dashed grey)' in title


def test_where_nothing_passes_the_threshold_it_is_said():
    said = nothing_drawn(0.4, 0.0371)
    assert said == (
        'no prediction has a score of 0.4 or more: the highest is 0.037; '
        'draw it with --score-threshold 0.03'
    )
    assert nothing_drawn(0.4, None) == 'there is no prediction'
    figure = restored_figure(replica([], [], 0.0).image, ANNOTATED, [replica([], [], 5.0)], said)
    title = figure.axes[0].get_title().replace('\n', ' ')
    assert title == f'source image: 2 annotations (white); {said}'
    assert len(drawn(figure.axes[0])) == len(drawn(figure.axes[1])) == 2
