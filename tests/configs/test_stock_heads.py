"""The stock configs that docs/heads.md names are supported, or refused, as it says."""

import re

import pytest
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from lt_mm.models.heads import ConsistencyMixin
from lt_mm.structures.errors import UnsupportedHeadError
from tests.paths import DOCS

DOCUMENT = (DOCS / 'heads.md').read_text()


def listed(title):
    """(library, part of the model, config) of the lists below lines of this title."""
    found = []
    for library, section in re.findall(
        r'^## Configs of (\w+)$(.*?)(?=^## )', DOCUMENT, flags=re.MULTILINE | re.DOTALL
    ):
        text = re.split(rf'^{title}.*$', section, flags=re.MULTILINE)[1]
        text = text.split('\n\n')[1]
        found += [
            (library.lower(), part, config)
            for item in text.split('\n- ')
            for part in re.findall(r'model\.(\w+)', item)
            for config in re.findall(r'\w+/[\w.-]+\.py', item)
        ]
    return found


def wrapped(library, part, config):
    scope = {'mmdetection': 'mmdet'}.get(library, library)
    init_default_scope(scope)
    model = get_config(f'{scope}::{config}').model
    options = {}
    if scope == 'mmdet':
        options = dict(train_cfg=model.get('train_cfg'), test_cfg=model.get('test_cfg'))
        if part == 'roi_head':
            options = {key: value.get('rcnn') for key, value in options.items()}
    return MODELS.build(dict(type='lt_mm.LossTransformHead', head=model[part], **options))


@pytest.mark.parametrize('library, part, config', listed('Supported'))
def test_supported(library, part, config):
    assert isinstance(wrapped(library, part, config), ConsistencyMixin)


@pytest.mark.parametrize('library, part, config', listed('Refused'))
def test_refused(library, part, config):
    with pytest.raises(UnsupportedHeadError, match='expected|use '):
        wrapped(library, part, config)


def test_the_lists_are_read():
    for title, count in (('Supported', 50), ('Refused', 6)):
        libraries = [library for library, *_ in listed(title)]
        assert libraries.count('mmdetection') >= count
        assert libraries.count('mmpretrain') >= 5
