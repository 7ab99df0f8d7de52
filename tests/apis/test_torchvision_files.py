"""Names, shapes and files of torchvision's weights: what is converted and what is refused."""

import re
import runpy
import sys

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torchvision.models._meta import _COCO_CATEGORIES

from lt_mm.apis.torchvision_layers import ARCHITECTURES
from lt_mm.apis.torchvision_weights import COCO_CATEGORY_IDS, WrongModelError, convert, convert_file
from tests.apis.test_torchvision_weights import (
    CLASSIFIERS,
    CONFIGS,
    DETECTORS,
    NOT_IN_COCO,
    build,
    stock_model,
    torchvision_model,
)
from tests.paths import TOOLS


@pytest.fixture(scope='module')
def state_dicts():
    """Of all models, without values: shapes are all that the checks look at."""
    with torch.device('meta'):
        return {name: build(name).state_dict() for name in ARCHITECTURES}


def test_every_model_takes_its_own_state_dict_only(state_dicts):
    assert set(state_dicts) == set(CLASSIFIERS) | set(DETECTORS)
    for name, given in state_dicts.items():
        assert len(convert(name, given)) == len(given)
        for other in set(state_dicts) - {name}:
            with pytest.raises(WrongModelError, match=f'not one of {other}'):
                convert(other, given)


def test_errors_name_expected_and_found_keys(state_dicts):
    given = dict(state_dicts['resnet50'])
    given['head.weight'] = given.pop('fc.weight')
    with pytest.raises(WrongModelError) as error:
        convert('resnet50', given)
    assert 'missing (fc.weight)' in str(error.value)
    assert 'unexpected (head.weight)' in str(error.value)
    with pytest.raises(WrongModelError, match=r'layer1.0.conv2.weight.*\(64, 64, 3, 3\)'):
        convert('resnet50', state_dicts['resnext50_32x4d'])
    with pytest.raises(ValueError, match="'resnet18'.*resnet50"):
        convert('resnet18', {})


def test_unexpected_keys_are_listed_by_the_stock_model(state_dicts):
    stock = stock_model(CLASSIFIERS['mobilenet_v2'])
    given = state_dicts['mobilenet_v2']
    converted = convert(
        'mobilenet_v2', {key: torch.zeros(value.shape) for key, value in given.items()}
    )
    with pytest.raises(RuntimeError, match='Unexpected key.*"backbone.more"'):
        stock.load_state_dict({**converted, 'backbone.more': torch.zeros(1)}, strict=True)


# How older releases named what they saved: patterns of today's names.
OLD_NAMES = [
    ('vit_b_16', r'mlp\.0\.', 'mlp.linear_1.'),
    ('vit_b_16', r'mlp\.3\.', 'mlp.linear_2.'),
    ('fasterrcnn_resnet50_fpn', r'(_blocks\.\d)\.0\.', r'\1.'),
    ('fasterrcnn_resnet50_fpn', r'conv\.0\.0\.', 'conv.'),
    ('maskrcnn_resnet50_fpn', r'mask_head\.0\.0\.', 'mask_head.mask_fcn1.'),
    ('maskrcnn_resnet50_fpn', r'mask_head\.3\.0\.', 'mask_head.mask_fcn4.'),
    ('retinanet_resnet50_fpn', r'_head\.conv\.1\.0\.', '_head.conv.2.'),
    ('retinanet_resnet50_fpn', r'_head\.conv\.3\.0\.', '_head.conv.6.'),
]


@pytest.mark.parametrize('name, pattern, replacement', OLD_NAMES)
def test_files_of_older_releases_are_read(state_dicts, name, pattern, replacement):
    today = state_dicts[name]
    old = {re.sub(pattern, replacement, key): value for key, value in today.items()}
    assert set(old) != set(today)
    converted = convert(name, old)
    expected = convert(name, today)
    assert all(
        converted[key] is value
        for key, value in expected.items()
        if not key.startswith(
            ('roi_head.bbox_head.fc_', 'bbox_head.retina_cls', 'roi_head.mask_head.conv_logits')
        )
    )


def test_frozen_batch_normalisation_has_no_counter(state_dicts):
    given = {
        key: value
        for key, value in state_dicts['fasterrcnn_resnet50_fpn'].items()
        if not key.endswith('num_batches_tracked')
    }
    converted = convert('fasterrcnn_resnet50_fpn', given)
    assert converted['backbone.bn1.num_batches_tracked'] == 0


def test_classes_of_coco_are_those_of_mmdet():
    names = [_COCO_CATEGORIES[i] for i in COCO_CATEGORY_IDS]
    assert tuple(names) == CocoDataset.METAINFO['classes']
    assert {_COCO_CATEGORIES[i] for i in NOT_IN_COCO} == {'N/A'}


def test_detectors_of_other_data_keep_the_order_of_their_classes(state_dicts):
    name = 'fasterrcnn_resnet50_fpn'
    predictor = 'roi_heads.box_predictor'
    given = {
        **state_dicts[name],
        f'{predictor}.cls_score.weight': torch.arange(3.0).expand(1024, 3).T,
        f'{predictor}.cls_score.bias': torch.arange(3.0),
        f'{predictor}.bbox_pred.weight': torch.arange(12.0).expand(1024, 12).T,
        f'{predictor}.bbox_pred.bias': torch.arange(12.0),
    }
    converted = convert(name, given)
    head = 'roi_head.bbox_head'
    assert converted[f'{head}.fc_cls.bias'].tolist() == [1, 2, 0]
    assert converted[f'{head}.fc_cls.weight'][:, 0].tolist() == [1, 2, 0]
    assert converted[f'{head}.fc_reg.bias'].tolist() == list(range(4, 12))
    assert converted[f'{head}.fc_reg.weight'][:, 9].tolist() == list(range(4, 12))


def test_the_tool_writes_what_load_from_and_init_cfg_take(tmp_path, monkeypatch):
    given = torchvision_model('mobilenet_v2').state_dict()
    source, target = str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')
    torch.save(given, source)
    tool = TOOLS / 'model_converters' / 'torchvision_to_mm.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), 'mobilenet_v2', source, target])
    runpy.run_path(str(tool), run_name='__main__')
    assert torch.load(target, weights_only=True)['meta'] == {
        'converted_from': 'torchvision mobilenet_v2'
    }
    cfg = Config.fromfile(str(CONFIGS / CLASSIFIERS['mobilenet_v2']))
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=target)
    init_default_scope('mmpretrain')
    pretrained = MODELS.build(cfg.model)
    pretrained.init_weights()
    loaded = stock_model(CLASSIFIERS['mobilenet_v2'])
    load_checkpoint(loaded, target, strict=True)  # what load_from calls
    for model in (pretrained, loaded):
        for key, value in convert('mobilenet_v2', given).items():
            assert torch.equal(model.state_dict()[key], value), key


def test_checkpoints_of_the_reference_scripts_are_read(tmp_path):
    given = torchvision_model('mobilenet_v2').state_dict()
    source, target = str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth')
    torch.save({'model': given, 'epoch': 3}, source)
    convert_file('mobilenet_v2', source, target)
    saved = torch.load(target, weights_only=True)['state_dict']
    assert torch.equal(saved['head.fc.bias'], given['classifier.1.bias'])
