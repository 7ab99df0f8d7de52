"""What a run meets later is recorded, or refused before the first step."""

import types

import numpy as np
import pytest
from mmdet.engine.hooks import PipelineSwitchHook
from mmengine.dataset import ConcatDataset, pseudo_collate
from mmengine.registry import init_default_scope
from mmpretrain.engine.hooks import SwitchRecipeHook
from torch.utils.data import DataLoader

from lt_mm.datasets.samplers.repeat_aug import GroupedRepeatAugSampler
from lt_mm.engine.preparation import prepare_training
from lt_mm.structures.errors import MissingRecordError
from tests.datasets.transforms.pipeline_data import (
    PACK,
    LoadMadeImage,
    MadeDataset,
    loaders,
    make_sample,
    pipeline_of,
)

STAGE_2 = [dict(type=LoadMadeImage), loaders()[1], dict(type='RandomFlip', prob=1.0), PACK]
WRAPPED = [dict(type='lt_mm.InvertiblePipeline', transforms=STAGE_2)]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def made(*, records=True, offset=None, parts=1):
    pipelines = [
        [pipeline_of([], sample_idx_offset=offset)] if records else STAGE_2 for _ in range(parts)
    ]
    datasets = [MadeDataset([make_sample()] * 4, pipeline) for pipeline in pipelines]
    return ConcatDataset(datasets) if parts > 1 else datasets[0]


def prepared(dataset, hook):
    """A runner of this hook, as far as the preparation looks at it, and the loader."""
    sampler = GroupedRepeatAugSampler(dataset, num_repeats=2, shuffle=False)
    loader = DataLoader(dataset, 4, sampler=sampler, collate_fn=pseudo_collate)
    model = types.SimpleNamespace(data_preprocessor=None)
    logger = types.SimpleNamespace(info=lambda message: None)
    runner = types.SimpleNamespace(
        hooks=[hook], model=model, epoch=1, train_dataloader=loader, logger=logger, _resume=False
    )
    runner.train_loop = types.SimpleNamespace(dataloader=loader)
    prepare_training(model, loader, [hook])
    return runner, loader


@pytest.mark.parametrize('offset', [None, 30])
@pytest.mark.parametrize(
    'hook',
    [
        lambda: PipelineSwitchHook(1, WRAPPED),
        lambda: SwitchRecipeHook([dict(action_epoch=2, train_pipeline=WRAPPED)]),
    ],
    ids=['PipelineSwitchHook', 'SwitchRecipeHook'],
)
def test_a_wrapped_pipeline_takes_over_and_counts_on(hook, offset):
    hook = hook()
    runner, loader = prepared(made(offset=offset), hook)
    before = next(iter(loader))['data_samples']
    hook.before_train_epoch(runner)
    batch = next(iter(loader))['data_samples']
    start = offset or 0
    assert [sample.flip for sample in batch] == [True] * 4 and 'flip' not in before[0]
    assert [sample.source_id for sample in batch] == [start, start, start + 1, start + 1]
    assert [sample.num_replicas for sample in batch] == [2] * 4
    np.testing.assert_array_equal(batch[0].source_matrix[0], [-1, 0, batch[0].img_shape[1]])


@pytest.mark.parametrize(
    'hook',
    [
        lambda: PipelineSwitchHook(280, STAGE_2),
        lambda: SwitchRecipeHook([dict(action_epoch=2, train_pipeline=STAGE_2)]),
    ],
    ids=['PipelineSwitchHook', 'SwitchRecipeHook'],
)
def test_a_stock_pipeline_is_refused_before_the_first_step(hook):
    with pytest.raises(MissingRecordError, match=r"=\[dict\(type='lt_mm.InvertiblePipeline'"):
        prepared(made(), hook())
    prepared(made(records=False), hook())  # a plain run


def test_one_pipeline_for_several_data_sets_is_refused():
    with pytest.raises(MissingRecordError, match='2 data sets at once'):
        prepared(made(parts=2), SwitchRecipeHook([dict(action_epoch=2, train_pipeline=WRAPPED)]))
