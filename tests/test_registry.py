"""Which class a config builds, in every form in which it can name one."""

import pytest
from mmdet.datasets import CocoDataset, MultiImageMixDataset
from mmengine.config import Config
from mmengine.config.lazy import LazyObject
from mmengine.hooks import CheckpointHook, Hook

from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.engine.hooks import AtomicCheckpointHook
from lt_mm.registry import DATASETS, HOOKS, TRANSFORMS, builds, class_of, configs_of

CHECKPOINT_HOOK = (
    'CheckpointHook',
    'mmengine.CheckpointHook',
    'mmengine.hooks.CheckpointHook',
    'mmengine.hooks.checkpoint_hook.CheckpointHook',
    CheckpointHook,
    LazyObject('mmengine.hooks', 'CheckpointHook'),
    LazyObject('mmengine.hooks').CheckpointHook,
    LazyObject(['mmengine.hooks']).hooks.CheckpointHook,
)


@pytest.mark.parametrize('scope', [None, 'mmdet', 'mmpretrain'])
@pytest.mark.parametrize('kind', CHECKPOINT_HOOK, ids=str)
def test_every_form_names_the_class(kind, scope):
    assert class_of(kind, HOOKS.parent, scope) is CheckpointHook
    assert builds(dict(type=kind), CheckpointHook, HOOKS, scope)
    assert builds(dict(type=kind), Hook, HOOKS, scope)
    assert not builds(dict(type=kind), AtomicCheckpointHook, HOOKS, scope)


def test_bare_names_of_a_scope():
    assert class_of('CocoDataset', DATASETS, 'mmdet') is CocoDataset
    assert class_of('CocoDataset', DATASETS, 'mmengine') is None
    assert class_of('no_module.at_all.X', DATASETS) is None and class_of(None, DATASETS) is None
    mixing = dict(dataset=dict(type='MultiImageMixDataset', pipeline=[dict(type='Mosaic')]))
    found = list(configs_of(mixing, MultiImageMixDataset, DATASETS, 'mmdet'))
    assert found == [mixing['dataset']]


def test_built_objects_and_subclasses_count():
    class Own(CheckpointHook):
        pass

    assert builds(Own(), CheckpointHook, HOOKS) and builds(dict(type=Own), CheckpointHook, HOOKS)
    assert not builds(Hook(), CheckpointHook, HOOKS) and not builds({}, CheckpointHook, HOOKS)


def test_a_pure_python_config_is_read_before_its_imports(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        'from mmengine.config import read_base\n'
        'from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline\n'
        'pipeline = [dict(type=InvertiblePipeline, transforms=[])]\n'
    )
    cfg = Config.fromfile(str(path))
    for node in (cfg.pipeline, cfg._to_lazy_dict()['pipeline']):
        assert len(list(configs_of(node, InvertiblePipeline, TRANSFORMS))) == 1
