"""A config with LossTransform is its plain config and the three overrides, and nothing else."""

from typing import Any

import pytest
from mmengine.config import Config

from tests.paths import CONFIGS

FILES = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')}
# Under LossTransform all replicas of an image are mixed alike, by other augments.
MIXED = tuple(f'cifar/resnet20_cifar10_{name}' for name in ('all', 'cutmix', 'cutout', 'mixup'))
TWINS = {
    name: name.replace('_lt.py', '.py')
    for name in sorted(FILES)
    if name.endswith('_lt.py')
    and name.replace('_lt.py', '.py') in FILES
    and not name.startswith(MIXED)
}


def test_the_families_have_twins():
    folders = [name.split('/')[0] for name in TWINS]
    assert folders.count('cifar') == folders.count('pennfudan') == 10


@pytest.mark.parametrize('name', TWINS)
def test_the_plain_config_is_left_without_the_overrides(name):
    with_lt, plain = (_settings(file) for file in (name, TWINS[name]))
    assert with_lt['train_dataloader'].pop('sampler')['type'] == 'lt_mm.GroupedRepeatAugSampler'
    del plain['train_dataloader']['sampler']
    assert with_lt != plain
    assert _without_wrappers(with_lt) == _without_wrappers(plain)


def _settings(name: str) -> dict[str, Any]:
    return Config.fromfile(str(CONFIGS / name)).to_dict()


def _without_wrappers(node: Any) -> Any:
    """The node with every wrapped head and pipeline in the place of its wrapper.

    Without scopes too, which MMEngine adds to what a config takes from `_base_`.
    """
    if isinstance(node, dict):
        if node.get('type') == 'lt_mm.LossTransformHead':
            return _without_wrappers(node['head'])
        return {key: _without_wrappers(node[key]) for key in node.keys() - {'_scope_'}}
    if isinstance(node, list):
        return [step for item in node for step in _without_pipeline(item)]
    return node


def _without_pipeline(item: Any) -> list[Any]:
    if isinstance(item, dict) and item.get('type') == 'lt_mm.InvertiblePipeline':
        return _without_wrappers(item['transforms'])
    return [_without_wrappers(item)]
