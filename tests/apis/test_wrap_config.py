"""Child configs are their stock config, with what is said to be changed, and nothing else."""

import functools
import operator
import os
import re

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from lt_mm.apis.wrapping import Override, WrapOptions, child_config, overrides_of, wrap_config
from lt_mm.apis.zoo.stock_configs import stock_configs
from lt_mm.structures.errors import UnsupportedHeadError
from tests.paths import CONFIGS
from tests.training_data import detector_options

SAMPLER = ('train_dataloader', 'sampler')
PIPELINE = ('train_dataloader', 'dataset', 'pipeline')
# A config of each kind of nesting, and the places that it needs beside sampler and head.
STOCK = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': {PIPELINE},
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py': {
        PIPELINE,
        ('train_dataloader', 'dataset', 'dataset', 'pipeline'),
        ('model', 'data_preprocessor'),
    },
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': {
        PIPELINE,
        ('custom_hooks', 1, 'switch_pipeline'),
    },
    'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py': {
        ('train_dataloader', 'dataset', 'dataset', 'datasets', 0, 'pipeline'),
        ('train_dataloader', 'dataset', 'dataset', 'datasets', 1, 'pipeline'),
    },
    'mmdet::rpn/rpn_r50_fpn_1x_coco.py': {PIPELINE},
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': {
        PIPELINE,
        ('model', 'data_preprocessor'),
    },
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py': {PIPELINE, ('data_preprocessor',)},
}


def at(cfg, place):
    return functools.reduce(operator.getitem, place, cfg)


def plain(cfg: Config):
    """A config as a dict, without the scopes that MMEngine writes into bases of packages."""

    def stripped(node):
        if isinstance(node, dict):
            return {key: stripped(value) for key, value in node.items() if key != '_scope_'}
        if isinstance(node, (list, tuple)):
            return type(node)(stripped(each) for each in node)
        return node

    return stripped(cfg.to_dict())


def undone(child: Config, base: Config, overrides: list[Override]) -> dict:
    """The child with the values of the base at the places of the overrides."""
    cfg, stock = plain(child), plain(base)
    for each in overrides:
        *above, key = each.place
        holder, original = at(cfg, above), at(stock, above)
        if key in original or isinstance(key, int):
            holder[key] = original[key]
        else:
            del holder[key]
    return cfg


def check_child(text_path, base: Config, overrides: list[Override]) -> Config:
    child = Config.fromfile(str(text_path))
    assert undone(child, base, overrides) == plain(base)
    for each in overrides:
        made, stock = at(plain(child), each.place), plain(base)
        if each.kind is None:
            assert made == each.options['value']
            continue
        made = made[0] if each.in_list else made
        expected = dict(type=each.kind, **each.options)
        if each.wrapped:
            expected[each.wrapped] = at(stock, each.place)
        if each.merges:
            expected = {**at(stock, each.place), **expected}
        assert made == expected
    return child


@pytest.mark.parametrize('name', STOCK)
def test_each_kind_of_stock_config(name, tmp_path):
    base = get_config(name)
    overrides = overrides_of(base, WrapOptions())
    path = tmp_path / 'child.py'
    path.write_text(child_config(name, overrides, 'A test.', base))
    check_child(path, base, overrides)
    places = {each.place for each in overrides}
    heads = {place for place in places if place[0] == 'model' and place[-1] != 'data_preprocessor'}
    assert len(heads) == 1
    assert places - heads - {SAMPLER, ('train_dataloader', 'batch_size')} == STOCK[name]


def test_it_writes_the_config_of_the_readme(tmp_path):
    name = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    base = get_config(name)
    path = tmp_path / 'child.py'
    path.write_text(child_config(name, overrides_of(base, WrapOptions()), 'A test.', base))
    shown = Config.fromfile(str(CONFIGS / 'faster_rcnn_r50_lt.py'))
    assert plain(Config.fromfile(str(path))) == plain(shown)


def test_loops_that_count_iterations_get_the_endless_sampler():
    base = get_config('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py')
    sampler = next(each for each in overrides_of(base, WrapOptions()) if each.place == SAMPLER)
    assert sampler.kind == 'lt_mm.InfiniteGroupedRepeatAugSampler'


def made_config(folder, **more):
    """A stock classifier's config."""
    fields = dict(
        model=dict(type='ImageClassifier', backbone=dict(type='ResNet'), head=dict(type='Linear')),
        train_dataloader=dict(
            batch_size=3,
            sampler=dict(type='DefaultSampler', shuffle=False, round_up=True),
            dataset=dict(type='CIFAR10', pipeline=[dict(type='PackInputs')]),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
    )
    path = folder / 'stock.py'
    Config({**fields, **more}).dump(str(path))
    return path


def test_options(tmp_path):
    base = Config.fromfile(str(made_config(tmp_path)))
    found = {each.place: each for each in overrides_of(base, WrapOptions(4, 'v1', 0.5))}
    assert found[SAMPLER].options == dict(num_repeats=4, mode='v1', shuffle=False)
    assert found['train_dataloader', 'batch_size'].options == dict(value=4)
    assert found['model', 'head'].options == dict(rho=0.5)


def test_a_memory_needs_two_overrides(tmp_path):
    base = Config.fromfile(str(made_config(tmp_path)))
    overrides = overrides_of(base, WrapOptions(memory=0.7))
    assert [each.place for each in overrides] == [PIPELINE, ('model', 'head')]
    assert overrides[1].options == dict(rho=1.0, memory=dict(momentum=0.7))


def test_members_of_lists_and_of_wrappers_in_lists(tmp_path):
    part = dict(type='CIFAR10', pipeline=[dict(type='PackInputs')])
    datasets = [part, dict(type='KFoldDataset', dataset=part), dict(part, split='test')]
    loader = dict(batch_size=4, dataset=dict(type='ConcatDataset', datasets=datasets))
    recipe = dict(action_epoch=1, train_pipeline=[dict(type='PackInputs')])
    hooks = [
        dict(type='EMAHook'),
        dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=2), recipe]),
    ]
    base_path = made_config(tmp_path, train_dataloader=loader, custom_hooks=hooks)
    base = Config.fromfile(str(base_path))
    overrides = overrides_of(base, WrapOptions())
    path = tmp_path / 'child.py'
    path.write_text(child_config('stock.py', overrides, 'A test.', base))
    child = check_child(path, base, overrides)
    parts = child.train_dataloader.dataset.datasets
    assert parts[1].dataset.pipeline[0].transforms == [dict(type='PackInputs')]
    assert sum(each.in_list for each in overrides) == 4


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(model=dict(type='MAE', head=dict(type='X'))), UnsupportedHeadError, 'MAE has no'),
        (dict(train_dataloader=None), ValueError, 'no train_dataloader'),
        (
            dict(model=dict(type='ImageClassifier', head=dict(type='lt_mm.LossTransformHead'))),
            ValueError,
            'already',
        ),
    ],
)
def test_what_cannot_be_wrapped(change, error, message, tmp_path):
    base = Config.fromfile(str(made_config(tmp_path)))
    base.update({key: value for key, value in change.items() if key != 'model'})
    if 'model' in change:
        base.model = change['model']
    with pytest.raises(error, match=message):
        overrides_of(base, WrapOptions())


def test_a_file_is_not_overwritten(tmp_path):
    path = made_config(tmp_path)
    with pytest.raises(FileExistsError, match='--out'):
        wrap_config(str(path), str(path))


def test_the_written_config_is_checked_and_trains(shapes, tmp_path):
    options = detector_options(shapes)
    del options['custom_hooks']
    stock = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_demo.py'))
    stock.merge_from_dict(options)
    stock.dump(str(tmp_path / 'stock.py'))
    written = wrap_config(str(tmp_path / 'stock.py'), str(tmp_path / 'lt' / 'child.py'))
    assert not written.report.wrong
    assert 'roi_head.bbox_head' in str(written) and 'largest restoration error' in str(written)
    assert (tmp_path / 'lt' / 'child.py').read_text().startswith('# stock with LossTransform.\n')
    child = Config.fromfile(str(written.path))
    base = Config.fromfile(str(tmp_path / 'stock.py'))
    assert undone(child, base, written.overrides) == plain(base)


PURE = """
from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmpretrain.datasets import CustomDataset, PackInputs
from mmcv.transforms import LoadImageFromFile
from mmpretrain.models import (
    ClsDataPreprocessor, CrossEntropyLoss, GlobalAveragePooling, ImageClassifier,
    LinearClsHead, ResNet_CIFAR)
default_scope = None
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(
        type=CustomDataset,
        data_root='PICTURES',
        pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)],
    ),
)
model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=2),
    backbone=dict(type=ResNet_CIFAR, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead, num_classes=2, in_channels=64, loss=dict(type=CrossEntropyLoss)),
)
"""


def test_pure_python_configs(tmp_path, pictures):
    (tmp_path / 'base').mkdir()
    (tmp_path / 'base' / 'stock.py').write_text(PURE.replace('PICTURES', str(pictures)))
    written = wrap_config(str(tmp_path / 'base' / 'stock.py'), str(tmp_path / 'mine' / 'child.py'))
    assert not written.report.wrong, str(written)
    assert 'from ..base.stock import *' in written.path.read_text()
    child = Config.fromfile(str(written.path))
    base = Config.fromfile(str(tmp_path / 'base' / 'stock.py'))
    assert child.model.head.head.num_classes == base.model.head.num_classes == 2
    assert len(child.train_dataloader.dataset.pipeline[0].transforms) == 2
    assert child.train_dataloader.sampler.num_repeats == 2


def test_a_name_that_mmengine_does_not_find():
    with pytest.raises(ValueError, match=r'mmdet::gn\+ws/.* cannot be the base .*path of the file'):
        wrap_config('mmdet::gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py')


# Configs below these folders have a head, but none that gets the term, or do not train.
REFUSED = {'clrnet', 'deepsort', 'mask2former_vis', 'qdtrack', 'reid', 'sort', 'strongsort'}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('library', ['mmdet', 'mmpretrain'])
def test_every_stock_config(library, tmp_path):
    failed, refused = {}, set()
    for number, stock in enumerate(stock_configs(library)):
        folder = stock.name.partition('/')[0]
        path = tmp_path / f'child_{number}.py'
        name = f'{library}::{stock.name}'
        if not re.fullmatch(r'\w+', folder):  # MMEngine does not find these by name
            name = os.path.relpath(stock.cfg.filename, tmp_path)
        try:
            overrides = overrides_of(stock.cfg, WrapOptions())
        except (UnsupportedHeadError, ValueError) as error:
            assert 'expected' in str(error), name
            refused.add(folder)
            continue
        try:
            path.write_text(child_config(name, overrides, 'A test.', stock.cfg))
            check_child(path, stock.cfg, overrides)
        except Exception as error:
            failed[name] = repr(error)[:300]
    assert not failed
    assert refused <= REFUSED
