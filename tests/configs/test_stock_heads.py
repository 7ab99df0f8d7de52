"""The stock configs that docs/heads.md names are supported, or refused, as it says."""
import re
from pathlib import Path

import pytest
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from lt_mm.adapters.head import ConsistencyHead, UnsupportedHeadError

DOCUMENT = (Path(__file__).resolve().parents[2] / 'docs' / 'heads.md').read_text()


def listed(title):
    """(part of the model, config) of the list below a line."""
    text = re.split(rf'^{title}.*$', DOCUMENT, flags=re.MULTILINE)[1]
    text = text.split('\n\n')[1]
    return [(part, config) for item in text.split('\n- ')
            for part in re.findall(r'model\.(\w+)', item)
            for config in re.findall(r'\w+/[\w.-]+\.py', item)]


def wrapped(part, config):
    init_default_scope('mmdet')
    model = get_config(f'mmdet::{config}').model
    train_cfg, test_cfg = model.get('train_cfg'), model.get('test_cfg')
    if part == 'roi_head':
        train_cfg, test_cfg = train_cfg.get('rcnn'), test_cfg.get('rcnn')
    return MODELS.build(dict(type='lt_mm.LossTransformHead', head=model[part],
                             train_cfg=train_cfg, test_cfg=test_cfg))


@pytest.mark.parametrize('part, config', listed('Supported'))
def test_supported(part, config):
    assert isinstance(wrapped(part, config), ConsistencyHead)


@pytest.mark.parametrize('part, config', listed('Refused'))
def test_refused(part, config):
    with pytest.raises(UnsupportedHeadError, match='expected|use '):
        wrapped(part, config)


def test_the_lists_are_read():
    assert len(listed('Supported')) >= 20 and len(listed('Refused')) >= 20
