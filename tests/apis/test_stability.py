"""The measurement of steadiness, and the tool that writes its table and picture."""

import json
import runpy

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from lt_mm.evaluation import FlickerMetric
from lt_mm.visualization.flicker_figures import box_frames, class_strips
from tests.evaluation.random_models import classifier_fixture, detector_fixture, pictures_fixture  # noqa: F401 (fixtures)
from tests.evaluation.test_flicker_metric import frame_samples, measured
from tests.paths import TOOLS


def run_tool(fixture, out, *arguments):
    config, checkpoint, options = fixture
    tool = runpy.run_path(str(TOOLS / 'analysis' / 'stability.py'))
    given = [f'{key}={value}' for key, value in options.items() if not isinstance(value, dict)]
    command = [config, checkpoint, '--out', out, '--num-frames', 3, '--max-images', 2, *arguments]
    tool['main']([str(each) for each in [*command, '--cfg-options', *given]])
    return json.loads((out / 'stability.json').read_text())


def test_tool_on_a_detector_and_its_baseline(detector, tmp_path, capsys):
    config, checkpoint, _ = detector
    first, second = run_tool(
        detector, tmp_path, '--baseline', config, checkpoint, '--score-threshold', 0.0
    )
    assert first == second  # the same model sees the same frames
    assert first['flicker/num_frames'] == 3 and first['flicker/objects_per_frame'] > 0
    with Image.open(tmp_path / 'flicker.gif') as picture:
        assert picture.n_frames == 3
    assert 'flicker/objects_per_frame' in capsys.readouterr().out


def test_tool_on_a_classifier(classifier, tmp_path, capsys):
    (found,) = run_tool(classifier, tmp_path, '--num-replicas', 2)
    assert found['flicker/kl'] > 0 and 0 <= found['calibration/ece'] <= 1
    assert found['consistency/mean_kl'] > 0
    picture = np.asarray(Image.open(tmp_path / 'flicker.png'))
    assert picture.std() > 10
    assert 'calibration/ece' in capsys.readouterr().out


def test_the_picture_shows_what_blinks():
    """Red is in those frames alone in which a box appears or is gone."""
    box, other = [30.0, 30, 50, 50], [30.0, 60, 50, 76]
    samples = frame_samples([[box], [box], [box, other], [box, other], [box]])
    metric = FlickerMetric()
    measured(metric, samples)
    images = [np.full((100, 100, 3), 128, np.uint8)] * 5
    matrices = [sample.frame_matrix for sample in samples]
    pictures = box_frames({'model': metric.changes(7)}, images, matrices, ['cell'])
    red = [int((picture[:-40].astype(int) @ [1, -1, -1] > 100).sum()) for picture in pictures]
    assert red[0] == red[1] == red[3] == 0
    assert red[2] > 100 and red[4] > 50


def test_all_that_the_strips_say_is_inside_of_the_picture():
    titles = ['plain', 'a_config_with_a_name_as_long_as_this (two_folders/epoch_10.pth)']
    frames = [np.full((32, 32, 3), 128, np.uint8)] * 3
    rows = np.array([[0.7, 0.3], [0.4, 0.6], [0.6, 0.4]])
    heading = '\n'.join(f'{title}, 50 images: 10.9 % label changes' for title in titles)
    figure = class_strips(titles, [frames] * 2, [[rows] * 2] * 2, ['cat', 'dog'], heading)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert len(texts) == 1 + 2 * 2 + 2 * 2 * 3
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)
    labels = [box for box, text in zip(boxes, texts) if 'changes' in text.get_text()]
    assert not any(box.overlaps(other) for box in labels for other in labels if box is not other)
