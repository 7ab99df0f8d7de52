"""Pictures of a config's training data."""

import cv2
import pytest
from mmengine.config import Config

from lt_mm.apis import browse
from lt_mm.apis.replica_configs import record_pipelines
from lt_mm.datasets.replica_failures import BELOW
from lt_mm.visualization.drawing import NoDisplayError
from tests.paths import CONFIGS


def browsed(root, tmp_path, config='faster_rcnn_r18_lt_demo.py', **options):
    more = {'train_dataloader.dataset.data_root': str(root), 'work_dir': str(tmp_path)}
    return browse.browse_replicas(
        str(CONFIGS / config), cfg_options={**more, **options.pop('more', {})}, **options
    )


def test_a_detector(shapes, tmp_path):
    summary, failures = browsed(
        shapes, tmp_path, num_sources=1, seed=1, more={'model.roi_head.min_visibility': 1.0}
    )
    assert (summary.sources, summary.replicas) == (1, 2)  # the sampler's num_repeats
    assert summary.instances == summary.kept + summary.lost > 0
    assert summary.largest_error < 0.01
    cut = [each for each in failures if BELOW in each.kinds]
    # The head's threshold: whatever is cut a little is among the failures.
    assert len(cut) == summary.below_visibility > 0
    assert all('less than 100%' in each.reason for each in cut)
    files = sorted(path.name for path in (tmp_path / 'replicas').iterdir())
    assert files[0] == 'failures.png' and len(files) == 2
    assert cv2.imread(str(tmp_path / 'replicas' / files[1])).std() > 10


def test_a_plain_config_is_wrapped(shapes, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(browse, 'warn', said.append)
    summary, _ = browsed(shapes, tmp_path, 'faster_rcnn_r18_demo.py', num_sources=1, seed=1)
    assert len(said) == 1 and 'InvertiblePipeline' in said[0]
    assert summary.replicas == 4 and summary.largest_error < 0.01
    wrapped, _ = browsed(shapes, tmp_path, num_sources=1, num_replicas=4, seed=1)
    assert wrapped == summary


def test_a_plain_pipeline_is_wrapped_wherever_it_stands():
    options = dict(dataset=dict(datasets=[dict(pipeline=[1]), dict(pipeline=[2])]), pipeline=[3])
    record_pipelines(options)
    inner = options['dataset']['datasets']
    for each, transforms in zip([*inner, options], ([1], [2], [3])):
        assert each['pipeline'] == [dict(type='lt_mm.InvertiblePipeline', transforms=transforms)]


def test_a_classifier_has_no_boxes(pictures, tmp_path):
    cfg = Config.fromfile(str(CONFIGS / 'resnet18_cifar10_lt.py'))
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[0].transforms.insert(0, dict(type='LoadImageFromFile'))
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(pictures), pipeline=pipeline
    )
    cfg.dump(str(tmp_path / 'config.py'))
    summary, failures = browse.browse_replicas(
        str(tmp_path / 'config.py'), out=str(tmp_path / 'out'), num_sources=3
    )
    assert str(summary) == '3 sources, 12 replicas, without annotated instances'
    assert failures == []
    files = list((tmp_path / 'out').iterdir())
    assert len(files) == 3 and all(path.name.startswith('source_') for path in files)


def test_windows(shapes, tmp_path, monkeypatch):
    from matplotlib import pyplot

    pyplot.switch_backend('agg')
    with pytest.raises(NoDisplayError, match='--out DIR'):
        browsed(shapes, tmp_path, show=True)
    pyplot.switch_backend('template')  # a backend that shows nothing
    try:
        titles = []
        monkeypatch.setattr(pyplot, 'show', lambda: titles.append(pyplot.gcf().get_label()))
        browsed(shapes, tmp_path, show=True, num_sources=1)
        assert len(titles) == 2 and titles[-1] == 'failures'
        assert not (tmp_path / 'replicas').exists()
    finally:
        pyplot.close('all')
        pyplot.switch_backend('agg')


@pytest.mark.parametrize('name', ['num_sources', 'num_replicas'])
def test_numbers_out_of_range(shapes, tmp_path, name):
    with pytest.raises(ValueError, match=f'{name} is 0'):
        browsed(shapes, tmp_path, **{name: 0})
