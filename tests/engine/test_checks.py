"""What would spoil a run is found before its first step, and the check leaves no trace."""

import random
import types

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from lt_mm.apis.check_config import check_config
from lt_mm.datasets.held_pipelines import working_copy
from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler
from lt_mm.datasets.source_numbers import check_numbers
from lt_mm.engine.checks import (
    Report,
    RunCheckError,
    check_data,
    check_inherited_pipelines,
    check_overrides,
)
from lt_mm.engine.hooks import CheckHook
from lt_mm.structures import comparing_heads
from lt_mm.structures.errors import MissingRecordError
from tests.datasets.transforms.pipeline_data import MadeDataset, make_sample, pipeline_of
from tests.paths import CONFIGS
from tests.training_data import detector_options, train_demo

PLAIN, WRAPPED = 'faster_rcnn_r18_demo.py', 'faster_rcnn_r18_lt_demo.py'
STOCK_SAMPLER = dict(_delete_=True, type='DefaultSampler', shuffle=True)


def checked(shapes, config, **more):
    options = {**detector_options(shapes), 'custom_hooks': [], **more}
    return check_config(str(CONFIGS / config), options)


def wrong(report):
    return {each.topic: f'{each.text} {each.remedy}' for each in report.wrong}


def stock(key):
    return Config.fromfile(str(CONFIGS / PLAIN)).to_dict()[key]


def stock_head():
    return {'model.roi_head': dict(_delete_=True, **stock('model')['roi_head'])}


def test_a_right_config(shapes):
    report = checked(shapes, WRAPPED)
    assert not report.wrong
    found = {each.topic: each.text for each in report.findings}
    assert 'rho=1.0' in found['head'] and 'roi_head.bbox_head' in found['head']
    assert found['sampler'].startswith('GroupedRepeatAugSampler, 2 replicas of an image')
    assert found['first samples'].startswith('3 sources, 6 replicas')
    assert found['first samples'].endswith('px')


def test_a_stock_config_is_not_wrong(shapes):
    report = checked(shapes, PLAIN)
    assert not report.wrong
    assert 'trains the stock model' in str(report)


def test_a_sampler_without_a_head(shapes):
    report = checked(shapes, WRAPPED, **stock_head())
    assert list(wrong(report)) == ['head'] and 'LossTransformHead' in wrong(report)['head']


def test_a_head_without_a_sampler(shapes):
    report = checked(shapes, WRAPPED, **{'train_dataloader.sampler': STOCK_SAMPLER})
    assert list(wrong(report)) == ['sampler']
    assert 'GroupedRepeatAugSampler' in wrong(report)['sampler']


def test_a_baseline_needs_no_sampler(shapes):
    options = {'train_dataloader.sampler': STOCK_SAMPLER, 'model.roi_head.rho': 0.0}
    assert not checked(shapes, WRAPPED, **options).wrong


def test_a_memory_needs_no_sampler(shapes):
    memory = {'model.roi_head.memory': dict(momentum=0.5)}
    report = checked(shapes, WRAPPED, **{'train_dataloader.sampler': STOCK_SAMPLER}, **memory)
    assert not report.wrong and 'memory with momentum 0.5' in str(report)


def test_a_pipeline_that_does_not_record(shapes):
    pipeline = stock('train_pipeline')
    report = checked(shapes, WRAPPED, **{'train_dataloader.dataset.pipeline': pipeline})
    assert list(wrong(report)) == ['pipeline']
    assert 'InvertiblePipeline' in wrong(report)['pipeline']


def test_a_batch_that_cuts_groups_apart(shapes):
    report = checked(shapes, WRAPPED, **{'train_dataloader.batch_size': 3})
    assert 'batch_size=3' in wrong(report)['preparation']


def test_a_batch_of_one_source(shapes):
    report = checked(shapes, WRAPPED, **{'train_dataloader.batch_size': 2})
    notes = {each.topic: each for each in report.findings if each.level == 'note'}
    assert notes['batch size'].remedy == 'train_dataloader.batch_size=4 or more'
    assert not report.wrong


def test_repeat_fraction_without_the_option_of_the_head(shapes):
    report = checked(shapes, WRAPPED, **{'train_dataloader.sampler.repeat_fraction': 0.5})
    assert 'allow_unrepeated=True' in wrong(report)['sampler']


def test_options_of_weak_copies(shapes):
    report = checked(shapes, WRAPPED, **{'model.roi_head.weak_target': dict()})
    assert 'weak=<weak>' in wrong(report)['weak copies']


def test_a_hook_whose_pipeline_does_not_record(shapes):
    hook = dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=stock('train_pipeline'))
    report = checked(shapes, WRAPPED, custom_hooks=[hook])
    assert 'switch_pipeline of PipelineSwitchHook' in wrong(report)['preparation']


def test_files_that_are_not_here_are_not_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = check_config(str(CONFIGS / 'faster_rcnn_r50_lt.py'))
    levels = {each.topic: each.level for each in report.findings}
    assert levels == {'data': 'not checked', 'head': 'ok'}


def test_classifiers_whose_replicas_are_mixed_with_other_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / 'cifar' / 'resnet20_cifar10_mixup_lt.py'
    options = {
        'train_dataloader.dataset.download': False,
        'data_preprocessor.type': 'ClsDataPreprocessor',
        'model.train_cfg.augments': dict(_delete_=True, type='Mixup', alpha=1.0),
    }
    report = check_config(str(config), options)
    assert 'GroupedClsDataPreprocessor' in wrong(report)['batch augments']


def test_training_stops_before_its_first_step(shapes, tmp_path):
    with pytest.raises(RunCheckError, match=r'(?s)no head compares.*LossTransformHead'):
        train_demo(shapes, tmp_path, **stock_head())
    assert not list(tmp_path.glob('*.pth'))


STOCK = """
train_pipeline = [dict(type='A'), dict(type='C')]
train_pipeline_stage2 = [dict(type='C')]
other_pipeline = [dict(type='A'), dict(type='B'), dict(type='C')]
train_dataloader = dict(dataset=dict(dataset=dict(type='D', pipeline=other_pipeline)))
"""
WRAP = """
_base_ = '{base}'
pipeline = [dict(type='lt_mm.InvertiblePipeline', transforms={transforms})]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
"""


def found_in_child(folder, *children):
    """What is found in the last of configs, each of which is the base of the next."""
    base = folder / 'stock.py'
    base.write_text(STOCK)
    for number, text in enumerate(children):
        child = folder / f'child{number}.py'
        child.write_text(text.replace('{base}', base.name))
        base = child
    report = Report()
    check_inherited_pipelines(Config.fromfile(str(base)), report)
    return report


def wrap(transforms):
    return WRAP.replace('{transforms}', transforms)


def test_a_variable_that_the_data_set_of_the_base_does_not_use(tmp_path):
    (found,) = found_in_child(tmp_path, wrap('_base_.train_pipeline')).wrong
    assert 'A, C instead of A, B, C' in found.text
    assert found.remedy == 'transforms=_base_.train_dataloader.dataset.dataset.pipeline'


def test_it_is_found_by_those_that_inherit_it(tmp_path):
    (found,) = found_in_child(
        tmp_path, wrap('_base_.train_pipeline'), "_base_ = '{base}'\nseed = 1\n"
    ).wrong
    assert '_base_.train_pipeline is not what stock.py trains with' in found.text


def test_it_is_found_in_the_labelled_part(tmp_path):
    text = wrap('_base_.train_pipeline').replace(
        'dataset=dict(dataset=dict(pipeline',
        'dataset=dict(_delete_=True, labelled=dict(dataset=dict(pipeline',
    )
    (found,) = found_in_child(tmp_path, text.rstrip() + ')').wrong
    assert found.remedy == 'transforms=_base_.train_dataloader.dataset.dataset.pipeline'


def test_a_variable_that_does_not_say_that_it_is_trained_with(tmp_path):
    report = found_in_child(tmp_path, wrap('_base_.train_pipeline_stage2'))
    (found,) = report.findings
    assert found.level == 'note' and 'C instead of A, B, C' in found.text


@pytest.mark.parametrize(
    'transforms',
    [
        '_base_.other_pipeline',
        '_base_.train_dataloader.dataset.dataset.pipeline',
        '_base_.train_pipeline[:1]',
    ],
)
def test_the_pipeline_of_the_base_or_one_of_the_users_own(tmp_path, transforms):
    assert not found_in_child(tmp_path, wrap(transforms)).findings


@pytest.mark.parametrize('transforms', ['_base_.train_pipeline', '_base_.train_pipeline_stage2'])
def test_one_in_place_of_what_the_base_records_is_meant(tmp_path, transforms):
    children = wrap('_base_.other_pipeline'), wrap(transforms)
    assert not found_in_child(tmp_path, *children).findings


def made(parts=1, transforms=()):
    init_default_scope('mmdet')
    datasets = [
        MadeDataset([make_sample()] * 4, [pipeline_of(list(transforms))]) for _ in range(parts)
    ]
    return ConcatDataset(datasets) if parts > 1 else datasets[0]


def test_ids_that_collide():
    dataset = made(parts=2)
    with pytest.raises(MissingRecordError, match='stand for images of two data sets'):
        check_numbers(dataset)
    GroupedRepeatAugSampler(dataset, num_repeats=2)
    check_numbers(dataset)


def test_boxes_that_are_moved_by_numbers():
    class MoveByNumbers:
        def __call__(self, results):
            boxes = results['gt_bboxes']
            results['gt_bboxes'] = type(boxes)(boxes.tensor.numpy() + 1)
            return results

    report = Report()
    check_data(made(transforms=[dict(type=MoveByNumbers)]), True, 0.3, report)
    assert list(wrong(report)) == ['first samples']
    assert 'MoveByNumbers' in wrong(report)['first samples']


def test_the_check_leaves_no_trace():
    def drawn(check):
        dataset = made(transforms=[dict(type='RandomFlip', prob=0.5)])
        sampler = GroupedRepeatAugSampler(dataset, num_repeats=2, seed=0)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if check:
            report = Report()
            check_data(dataset, True, 0.3, report)
            assert [each.level for each in report.findings] == ['ok', 'ok']
        packed = [dataset[index] for index in sampler]
        numbers = [random.random(), np.random.random(), float(torch.rand(()))]
        boxes = [each['data_samples'].gt_instances.bboxes.tensor.tolist() for each in packed]
        return boxes, numbers

    assert drawn(check=False) == drawn(check=True)


def test_a_working_copy_shares_annotations_and_no_pipeline():
    dataset = made(parts=2)
    copied = working_copy(dataset)
    for own, other in zip(dataset.datasets, copied.datasets):
        assert own is not other and own.pipeline is not other.pipeline
        assert own.pipeline.transforms[0] is not other.pipeline.transforms[0]
    copied.datasets[0].pipeline.transforms[0].number(100)
    assert dataset.datasets[0].pipeline.transforms[0].sample_idx_offset == 0


def test_a_working_copy_of_data_sets_in_a_dict():
    holder = made()
    holder.parts = dict(one=made(), two=made())
    copied = working_copy(holder)
    assert list(copied.parts) == ['one', 'two']
    assert copied.parts['one'].pipeline is not holder.parts['one'].pipeline


def test_a_head_with_a_loss_of_its_own_needs_the_sampler_too():
    model = torch.nn.Module()
    model.data_preprocessor = None
    comparing_heads.enrol(model)
    report = Report()
    check_overrides(model, DataLoader(made(), 4), report)
    assert 'GroupedRepeatAugSampler' in wrong(report)['sampler']


def test_the_hook_checks_with_the_stock_tools():
    dataset = made()
    loader = DataLoader(dataset, 4, sampler=GroupedRepeatAugSampler(dataset, num_repeats=2))
    model = torch.nn.Module()
    model.data_preprocessor = None
    runner = types.SimpleNamespace(
        model=model, train_dataloader=loader, hooks=[], cfg=Config(dict()), logger=None
    )
    with pytest.raises(RunCheckError, match='no head compares the replicas'):
        CheckHook().before_train(runner)
