"""The tools on configs of every form, and on wrapped data sets."""

from collections import OrderedDict

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmpretrain.registry import DATASETS as PRETRAIN_DATASETS

from lt_mm.apis.browse import browse_replicas
from lt_mm.apis.consistency import measure_consistency
from lt_mm.apis.draw_replicas import draw_replicas
from lt_mm.apis.replica_configs import validation_config, validation_replicas
from lt_mm.apis.term_gradients import measure_term_gradients
from lt_mm.apis.train import test as evaluate
from lt_mm.datasets.checks import explained
from lt_mm.datasets.reporting import DataSetError
from lt_mm.engine.launch import load_config
from lt_mm.structures.record import source_ids_of
from tests.config_forms import write_form
from tests.evaluation.random_models import classifier_fixture, detector_fixture, pictures_fixture  # noqa: F401 (fixtures)


def forget_scopes(monkeypatch):
    """As in a process in which nothing ran before."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())


def with_sizes_that_json_keeps(node):
    """Stock transforms take no lists, which is what JSON has, for random or rescaled sizes."""
    if isinstance(node, dict) and node.get('type') in ('Resize', 'RandomResize'):
        node.update(type='Resize', scale=(128, 96), keep_ratio=False)
        node.pop('ratio_range', None)
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list)):
            with_sizes_that_json_keeps(value)


def measured(config, checkpoint, folder):
    """What all tools say of a config and a checkpoint."""
    summary, _ = browse_replicas(config, str(folder / 'browse'), num_sources=1)
    drawn = draw_replicas(
        config, checkpoint, str(folder / 'drawn.png'), num_replicas=2, score_threshold=0.05
    )
    consistency = measure_consistency(
        config, checkpoint, 2, score_threshold=0.05, work_dir=str(folder / 'consistency')
    )
    terms = measure_term_gradients(config, checkpoint, 1, work_dir=str(folder / 'terms'))
    metrics = evaluate(config, checkpoint, work_dir=str(folder / 'test'))
    del consistency['config']
    return summary, drawn, consistency, terms['terms'], metrics


def test_all_tools_say_the_same_of_every_form(detector, tmp_path, monkeypatch):
    config, checkpoint, options = detector
    cfg = load_config(config, str(tmp_path), options)
    cfg.train_dataloader.num_workers = 0
    cfg.train_dataloader.persistent_workers = False
    with_sizes_that_json_keeps(cfg._cfg_dict)
    found = {}
    for form in ('names', 'classes', 'json'):
        forget_scopes(monkeypatch)
        path = write_form(cfg, form, tmp_path / form)
        found[form] = measured(path, checkpoint, tmp_path / form)
    summary, drawn, consistency, terms, _ = found['names']
    assert summary.instances > 0 and drawn['boxes'] > 0 and consistency['num_predictions'] > 0
    assert 'unaugmented' in consistency['stock'] and terms['loss_lt_cls']['ratio'] > 0
    assert found['classes'] == found['names'] and found['json'] == found['names']


@pytest.mark.parametrize('kind', ['CocoDataset', 'mmdet.CocoDataset', 'mmdet.datasets.CocoDataset'])
def test_a_faulty_annotation_file_is_explained_in_every_form(kind, tmp_path):
    (tmp_path / 'faulty.json').write_text('{"images": []')
    found = DATASETS.get('mmdet.CocoDataset')
    for each in (kind, found):
        faulty = dict(type=each, ann_file=str(tmp_path / 'faulty.json'))
        joined = dict(labelled=dict(datasets=[faulty]), unlabelled='folder')
        with pytest.raises(DataSetError, match=r'faulty\.json'), explained(joined):
            raise ValueError('what the stock data set says')


WRAPPERS = {
    'KFoldDataset': dict(num_splits=3, seed=0),
    'RepeatDataset': dict(times=2),
    'ClassBalancedDataset': dict(oversample_thr=0.9),
    'ConcatDataset': {},
    'lt_mm.ReplicaDataset': dict(num_replicas=2),
}


def wrapped_in(kind, options, dataset, **more):
    if kind == 'ConcatDataset':
        return dict(type=kind, datasets=[dataset, dataset])
    return dict(type=kind, dataset=dataset, **options, **more)


@pytest.fixture
def pipelines(classifier, tmp_path):
    """The config of a classifier, with the data sets of training and validation."""
    config, checkpoint, options = classifier
    cfg = validation_config(config, checkpoint, str(tmp_path), options)
    return cfg, cfg.train_dataloader.dataset.to_dict(), cfg.val_dataloader.dataset.to_dict()


@pytest.mark.parametrize('kind', WRAPPERS)
def test_data_sets_in_wrappers(kind, pipelines):
    cfg, train, val = pipelines
    fold = dict(test_mode=True) if kind == 'KFoldDataset' else {}
    cfg.train_dataloader.dataset = wrapped_in(kind, WRAPPERS[kind], train)
    cfg.val_dataloader.dataset = wrapped_in(kind, WRAPPERS[kind], val, **fold)
    with PRETRAIN_DATASETS.switch_scope_and_registry('mmpretrain') as registry:
        stock = registry.build(cfg.val_dataloader.dataset)
        replicas = registry.build(
            dict(type='lt_mm.ReplicaDataset', dataset=validation_replicas(cfg))
        )
        assert len(replicas) == 4 * len(stock) > 0
        for place in (0, len(stock) - 1):
            group = [replicas[4 * place + number]['data_samples'] for number in range(4)]
            assert len(set(source_ids_of(group))) == 1
            assert group[0].img_path == stock[place]['data_samples'].img_path


def test_a_fold_is_measured(classifier, pictures, tmp_path):
    """KFoldDataset as in MMPretrain's cross-validation, by the whole measurement."""
    config, checkpoint, options = classifier
    cfg = load_config(config, str(tmp_path), options)
    for name, is_test in (('train', False), ('val', True)):
        loader = cfg[f'{name}_dataloader']
        loader.dataset = dict(
            type='KFoldDataset', dataset=loader.dataset, fold=1, num_splits=3, test_mode=is_test
        )
    cfg.dump(str(tmp_path / 'folds.py'))
    found = measure_consistency(str(tmp_path / 'folds.py'), checkpoint, 2, work_dir=str(tmp_path))
    assert found['num_images'] == 4  # of twelve
    assert set(found['stock']) == {'unaugmented', 'single_replicas', 'averaged_replicas'}


@pytest.mark.parametrize('role', ['training', 'validation'])
def test_data_sets_that_mix_are_refused(role, pipelines):
    cfg, train, val = pipelines
    name, inner = ('train', train) if role == 'training' else ('val', val)
    mixing = dict(type='mmdet.MultiImageMixDataset', dataset=inner, pipeline=[])
    cfg[f'{name}_dataloader'].dataset = dict(type='RepeatDataset', times=2, dataset=mixing)
    with pytest.raises(ValueError, match=f'the {role} data set is a mmdet.MultiImageMixDataset'):
        validation_replicas(cfg)


def test_the_pipeline_of_half_labelled_data_is_that_of_the_labelled_part(pipelines):
    cfg, train, _ = pipelines
    cfg.train_dataloader.dataset = dict(
        type='lt_mm.LabelledAndUnlabelled', labelled=train, unlabelled='a folder'
    )
    assert (
        Config(dict(each=validation_replicas(cfg).pipeline[0].transforms)).each
        == Config(dict(each=train['pipeline'])).each
    )
