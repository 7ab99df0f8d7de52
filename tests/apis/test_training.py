"""Training with the real Runner, from config files, on small made data."""

import json
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from lt_mm.apis import train as api
from lt_mm.apis.draw_replicas import draw_replicas
from lt_mm.engine import launch
from lt_mm.engine.checks import RunCheckError
from lt_mm.structures.errors import UnpairedBatchError
from tests.launch_data import finish, start
from tests.paths import CONFIGS, TOOLS
from tests.rank_records import read_ranks
from tests.training_data import classifier_config, detector_options, recorded, train_demo

LOSSES = ('loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox')


def test_detector_trains_resumes_tests_and_is_drawn(shapes, tmp_path):
    runner = train_demo(shapes, tmp_path)
    outputs = recorded(runner)
    assert len(outputs) == 4  # 8 sources, each twice, in batches of 4
    assert all(step['lt_num_paired'] > 0 and step['loss_lt_bbox'] > 0 for step in outputs)
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars
    resumed = train_demo(shapes, tmp_path, resume='auto', **{'train_cfg.max_epochs': 2})
    assert (resumed.epoch, resumed.iter, len(recorded(resumed))) == (2, 8, 4)
    checkpoint = str(tmp_path / 'epoch_2.pth')
    metrics = api.test(
        str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'),
        checkpoint,
        work_dir=str(tmp_path),
        cfg_options=detector_options(shapes),
    )
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    # The stock config evaluates the same checkpoint alike.
    stock = api.test(
        str(CONFIGS / 'faster_rcnn_r18_demo.py'),
        checkpoint,
        work_dir=str(tmp_path / 'stock'),
        cfg_options=detector_options(shapes),
    )
    assert stock == metrics
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    cfg.merge_from_dict(detector_options(shapes))
    cfg.dump(str(tmp_path / 'small.py'))
    drawn = draw_replicas(
        str(tmp_path / 'small.py'), checkpoint, str(tmp_path / 'replicas.png'), score_threshold=0.0
    )
    picture = cv2.imread(str(tmp_path / 'replicas.png'))
    assert drawn['boxes'] >= drawn['paired'] > 0 and 0 < drawn['best_score'] <= 1
    assert picture is not None and picture.std() > 10


def test_rho_zero_gives_the_loss_curve_of_the_stock_framework(shapes, tmp_path):
    """The stock config without lt_mm, against the same data through the three parts."""
    stock = train_demo(shapes, tmp_path / 'stock', 'faster_rcnn_r18_demo.py')
    wrapped = train_demo(
        shapes,
        tmp_path / 'wrapped',
        **{
            'model.roi_head.rho': 0.0,
            'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
        },
    )
    expected, found = recorded(stock), recorded(wrapped)
    assert len(expected) == len(found) == 2
    for step, other in zip(expected, found):
        assert {key: other[key] for key in LOSSES} == {key: step[key] for key in LOSSES}
        assert other['loss'] == step['loss'] and other['loss_lt_cls'] == 0
    for name, value in stock.model.state_dict().items():
        assert torch.equal(wrapped.model.state_dict()[name], value), name


def test_batch_size_that_splits_groups_is_refused_before_the_first_step(shapes, tmp_path):
    with pytest.raises(ValueError, match='batch_size') as error:
        train_demo(shapes, tmp_path, **{'train_dataloader.batch_size': 3})
    assert '2' in str(error.value) and '4' in str(error.value)


STOCK_SAMPLER = {
    'train_dataloader.batch_size': 2,
    'train_cfg.max_epochs': 3,
    'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
}


def test_stock_sampler_below_a_wrapped_head_is_refused_before_the_first_step(shapes, tmp_path):
    with pytest.raises(RunCheckError, match='GroupedRepeatAugSampler'):
        train_demo(shapes, tmp_path, **STOCK_SAMPLER)


def test_with_the_stock_tools_it_stops_after_ten_batches(shapes, tmp_path):
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    cfg.merge_from_dict(detector_options(shapes, **STOCK_SAMPLER))
    cfg.work_dir = str(tmp_path)
    with pytest.raises(UnpairedBatchError, match='GroupedRepeatAugSampler'):
        Runner.from_cfg(cfg).train()


def test_classifier_trains(pictures, tmp_path):
    runner = Runner.from_cfg(
        classifier_config(
            pictures,
            tmp_path,
            **{'custom_hooks': [dict(type='RecordOutputs'), dict(type='EMAHook', momentum=0.1)]},
        )
    )
    runner.train()
    outputs = recorded(runner)
    assert len(outputs) == 6  # 12 sources four times, in batches of 8
    assert all(step['lt_num_paired'] == 8 and step['lt_kl_cls'] > 0 for step in outputs)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)

    assert {key for key in saved['state_dict'] if key.startswith('head.')} == {
        'head.fc.weight',
        'head.fc.bias',
    }


def test_classifier_trains_by_bare_names(pictures, tmp_path):
    """``custom_imports`` and names without the scope, in MMPretrain's scope."""
    cfg = classifier_config(
        pictures, tmp_path, custom_imports=dict(imports=['lt_mm'], allow_failed_imports=False)
    )
    cfg.train_dataloader.sampler.type = 'GroupedRepeatAugSampler'
    cfg.train_dataloader.dataset.pipeline[0].type = 'InvertiblePipeline'
    cfg.model.head.type = 'LossTransformHead'
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert recorded(runner)[0]['lt_num_paired'] == 8


def test_runs_of_one_second_have_logs_of_their_own(pictures, tmp_path, monkeypatch):
    """MMEngine names what they write with by their config and the second of their start."""
    monkeypatch.setattr(time, 'strftime', lambda *args: '20260101_000000')
    cfg = classifier_config(
        pictures, tmp_path, **{'custom_hooks': [], 'default_hooks.logger.interval': 1}
    )
    cfg.dump(str(tmp_path / 'one.py'))
    runners = [
        launch.build_runner(launch.load_config(str(tmp_path / 'one.py'), str(tmp_path / folder)))
        for folder in 'ab'
    ]
    for runner in runners:
        runner.train()
        scalars = Path(runner.log_dir, 'vis_data', 'scalars.json').read_text().splitlines()
        assert [json.loads(line)['iter'] for line in scalars] == [1, 2, 3, 4, 5, 6]
        assert (
            Path(runner.log_dir, f'{runner.timestamp}.log').read_text().count('Epoch(train)') == 6
        )


def test_two_processes_train_on_the_cpu(shapes, tmp_path):
    """The real launcher: groups stay whole on each rank, and both end with the same weights."""
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    cfg.merge_from_dict(
        detector_options(
            shapes,
            custom_imports=dict(imports=['tests.rank_records']),
            custom_hooks=[dict(type='WriteRankRecords')],
        )
    )
    cfg.dump(str(tmp_path / 'small.py'))
    command = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        '2',
        str(TOOLS / 'train.py'),
        str(tmp_path / 'small.py'),
        '--launcher',
        'pytorch',
        '--work-dir',
        str(tmp_path),
    ]
    finish([start(command)], seconds=240)
    scalars = next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()
    steps = [step for step in map(json.loads, scalars) if 'lt_num_paired' in step]
    assert len(steps) == 2  # 8 sources, each twice, in batches of 4, on two ranks
    assert all(step['lt_num_paired'] > 0 for step in steps)
    assert (tmp_path / 'epoch_1.pth').is_file()
    ranks = read_ranks(tmp_path)
    assert [(rank['local_rank'], rank['world_size']) for rank in ranks] == [(0, 2), (1, 2)]
    assert ranks[0]['digest'] == ranks[1]['digest'] and ranks[0]['port'] == ranks[1]['port']
