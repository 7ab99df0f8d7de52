"""The figure of a consistency report."""

import pytest

from lt_mm.visualization.consistency_figure import consistency_figure


def report(task, images):
    return dict(
        task=task,
        config='a.py',
        checkpoint='b.pth',
        num_replicas=4,
        num_images=len(images),
        seed=0,
        mean_kl=0.01,
        mean_iou=0.9,
        matched_share=None,
        agreement=1.0,
        images=images,
        per_class=dict(cat=dict(agreement=1.0, count=len(images))),
        stock={},
        examples=[],
        classes=['cat'],
    )


@pytest.mark.parametrize('task', ['classification', 'detection'])
@pytest.mark.parametrize('num_images', [1, 2, 5, 300])
def test_images_are_counted_in_whole_numbers(task, num_images):
    images = [dict(mean_kl=0.01, mean_iou=0.9, matched_share=1.0) for _ in range(num_images)]
    figure = consistency_figure(report(task, images))
    figure.draw_without_rendering()
    counted = [axes for axes in figure.axes if axes.get_ylabel() == 'images']
    assert len(counted) == (1 if task == 'classification' else 2)
    for axes in counted:
        low, high = axes.get_ylim()
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        assert len(ticks) >= 2 and all(tick == int(tick) for tick in ticks)
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert not any('.' in label for label in labels)
        assert max(bar.get_height() for bar in axes.patches) == num_images
