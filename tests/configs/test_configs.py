"""Every config builds: its model, its sampler and its pipelines."""
from pathlib import Path

import pytest
from mmdet.registry import TRANSFORMS as MMDET_TRANSFORMS
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS, MODELS, init_default_scope
from mmpretrain.registry import TRANSFORMS as MMPRETRAIN_TRANSFORMS

from lt_mm.adapters.head import ConsistencyHead
from lt_mm.adapters.pipeline import InvertiblePipeline
from lt_mm.adapters.sampler import GroupedRepeatAugSampler

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')
               if '_base_' not in path.parts)


@pytest.fixture(params=FILES)
def config(request):
    cfg = Config.fromfile(str(CONFIGS / request.param))
    init_default_scope(cfg.default_scope)
    return request.param, cfg


def test_it_builds(config):
    name, cfg = config
    model = MODELS.build(cfg.model)
    wrapped = [m for m in model.modules() if isinstance(m, ConsistencyHead)]
    loader = cfg.train_dataloader
    sampler = DATA_SAMPLERS.build(loader.sampler,
                                  default_args=dict(dataset=range(100), seed=0))
    transforms = (MMDET_TRANSFORMS if cfg.default_scope == 'mmdet'
                  else MMPRETRAIN_TRANSFORMS)
    innermost = loader.dataset
    while 'dataset' in innermost:
        innermost = innermost.dataset
    pipeline = [transforms.build(step) for step in innermost.pipeline]
    is_lt = '_lt' in name
    assert bool(wrapped) == is_lt
    # The SupCon baseline takes replicas too.
    is_repeated = is_lt or '_supcon' in name
    assert isinstance(sampler, GroupedRepeatAugSampler) == is_repeated
    assert isinstance(pipeline[0], InvertiblePipeline) == is_repeated
    if is_repeated:
        assert loader.batch_size % sampler.layout.num_repeats == 0
        assert len(pipeline) == 1  # the whole stock list is inside


@pytest.mark.parametrize('name', FILES)
def test_it_is_short(name):
    lines = (CONFIGS / name).read_text().splitlines()
    assert len(lines) <= 40 and any(line.startswith('_base_ =') for line in lines)


@pytest.mark.parametrize('name', [name for name in FILES if '_lt' in name])
def test_it_stands_in_the_table(name):
    assert f'`{name}`' in (CONFIGS / 'README.md').read_text()
