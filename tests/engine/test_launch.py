"""From a config of any form to a runner."""

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
from mmdet.models import RetinaNet
from mmengine.config import Config, ConfigDict
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.registry import DefaultScope
from yapf.yapflib import yapf_api

from lt_mm.apis.train import _enable_auto_scale_lr
from lt_mm.engine import launch
from lt_mm.engine.hooks import AtomicCheckpointHook, PreemptionHook, ResumeHook
from lt_mm.registry import HOOKS, class_of
from tests.config_forms import FORMS, write_form
from tests.paths import CONFIGS
from tests.training_data import detector_options

HOOK_CONFIG = dict(
    default_scope='mmdet',
    model=dict(type='RetinaNet'),
    default_hooks=dict(
        checkpoint=dict(type='CheckpointHook', interval=2), logger=dict(type='LoggerHook')
    ),
    custom_hooks=[dict(type='lt_mm.PreemptionHook'), dict(type='lt_mm.ResumeHook')],
)


def classes_of(hooks):
    return [class_of(hook.get('type'), HOOKS) for hook in hooks]


@pytest.fixture
def no_scope(monkeypatch):
    """As in a process in which nothing ran before."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())


@pytest.mark.parametrize('form', ['names', *FORMS])
def test_hooks_are_added_once_whatever_form_names_them(form, tmp_path, no_scope):
    path = write_form(Config(copy.deepcopy(HOOK_CONFIG)), form, tmp_path)
    cfg = launch.load_config(path)
    launch.add_hooks(cfg)
    assert classes_of(cfg.default_hooks.values()) == [AtomicCheckpointHook, LoggerHook]
    assert cfg.default_hooks.checkpoint.interval == 2
    names = [cls.__name__ for cls in classes_of(cfg.custom_hooks)]
    assert names == ['PreemptionHook', 'ResumeHook', 'MemoryHook', 'NonFiniteHook']


@pytest.mark.parametrize('images', [3, 45_000])
def test_the_text_of_a_long_config_is_not_formatted(images, tmp_path, monkeypatch):
    formatted = []

    def formatter(text, **options):
        formatted.append(text)
        return text, True

    monkeypatch.setattr(yapf_api, 'FormatCode', formatter)
    path = tmp_path / 'long.py'
    path.write_text('train_dataloader = dict(dataset=dict(indices=None))', encoding='utf-8')
    indices = {'train_dataloader.dataset.indices': list(range(images))}
    cfg = launch.load_config(str(path), cfg_options=indices)
    # As the runner and the checkpoints of a run ask for it.
    again = Config.fromstring(copy.deepcopy(cfg.copy()).pretty_text, '.py')
    assert again.train_dataloader.dataset.indices == [*range(images)]
    assert len(formatted) == (images == 3)


def test_hooks_that_stand_elsewhere_are_found_too():
    class Own(CheckpointHook):
        pass

    cfg = Config(
        dict(
            default_hooks=dict(checkpoint=dict(type=Own), stop=dict(type=PreemptionHook)),
            custom_hooks=[dict(type='mmengine.hooks.CheckpointHook', interval=5), ResumeHook()],
        )
    )
    launch.add_hooks(cfg)
    assert classes_of(cfg.default_hooks.values()) == [Own, PreemptionHook]  # a class of the user
    assert cfg.custom_hooks[0] == dict(type='lt_mm.AtomicCheckpointHook', interval=5)
    assert [each.type for each in cfg.custom_hooks[2:]] == [
        'lt_mm.MemoryHook',
        'lt_mm.NonFiniteHook',
    ]


def test_settings_that_are_none():
    cfg = Config(
        dict(auto_scale_lr=None, log_processor=None, default_hooks=None, custom_hooks=None)
    )
    with pytest.raises(ValueError, match='auto_scale_lr is None; expected.*base_batch_size=16'):
        _enable_auto_scale_lr(cfg)
    launch.average_terms_in_log(cfg)
    assert 'lt_' in cfg.log_processor.mean_pattern
    launch.add_hooks(cfg)
    assert classes_of(cfg.default_hooks.values()) == [AtomicCheckpointHook]
    assert len(cfg.custom_hooks) == 4
    launch.add_hooks(given := Config(dict(default_hooks=dict(checkpoint=None))))
    assert given.default_hooks.checkpoint is None  # switched off


def test_the_scope_of_an_earlier_run_does_not_hold(no_scope):
    DefaultScope.get_instance('earlier', scope_name='mmpretrain')
    launch.enter_scope(Config(dict(default_scope=None, model=dict(type=RetinaNet))))
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'
    launch.enter_scope(Config(dict(default_scope='mmpretrain')))
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
    launch.enter_scope(Config(dict(default_scope=None, model=dict(type='mmdet.models.RetinaNet'))))
    assert DefaultScope.get_current_instance().scope_name == 'mmdet'


def test_detectors_of_one_process_have_visualizers_of_their_own(shapes, tmp_path):
    """MMDetection names its visualizer in the config, and MMEngine finds it by that name."""
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    cfg.merge_from_dict(detector_options(shapes, launcher='none'))
    assert cfg.visualizer.name
    for name in 'ab':
        cfg.work_dir = str(tmp_path / name)
        runner = launch.build_runner(cfg)
        runner.visualizer.add_scalars(dict(found=1.0), step=1)
        path = Path(runner.log_dir, 'vis_data', 'scalars.json')
        assert json.loads(path.read_text()) == dict(found=1.0, step=1)
    assert isinstance(cfg.visualizer, ConfigDict) and cfg.visualizer.name == 'visualizer'
