"""Training on unlabelled images with weak copies as targets, by the Runner."""

import pytest
import torch

from lt_mm.engine import launch
from tests.engine.hooks.test_memory_hook import run
from tests.training_data import classifier_config, recorded, write_pictures

WEAK_TARGET = dict(temperature=0.5, threshold=0.5)


def unlabelled_config(pictures, work_dir, hooks=(), **weak_target):
    """12 labelled images and the same ones without labels; three steps an epoch."""
    cfg = classifier_config(pictures, work_dir)
    labelled = cfg.train_dataloader.dataset
    pipeline = labelled.pipeline[0]
    weak = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset': dict(
                _delete_=True,
                type='lt_mm.LabelledAndUnlabelled',
                labelled=labelled,
                unlabelled=dict(labelled, pipeline=[dict(pipeline, weak=weak)]),
            ),
            'train_dataloader.sampler.num_repeats': 2,
            'train_dataloader.sampler.mode': 'full',
            'train_dataloader.sampler.unlabelled_share': 0.5,
            'train_dataloader.batch_size': 8,
            'model.backbone.base_channels': 4,
            'model.backbone.stem_channels': 4,
            'model.head.head.in_channels': 32,
            'model.head.weak_target': dict(WEAK_TARGET, **weak_target),
            'train_cfg.max_epochs': 2,
            'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, by_epoch=False),
            'custom_hooks': [
                dict(type='RecordOutputs'),
                dict(type='lt_mm.ResumeHook', seed_steps=True),
                *hooks,
            ],
        }
    )
    return cfg


HOOKS = [dict(type='lt_mm.WeakTargetHook'), dict(type='EMAHook', momentum=0.1)]


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / 'pictures')


def test_a_run_with_a_teacher_and_its_resumption(pictures, tmp_path):
    whole = run(unlabelled_config(pictures, tmp_path / 'whole', HOOKS, teacher=True))
    steps = recorded(whole)
    assert len(steps) == 6
    for step in steps:
        assert step['lt_num_paired'] == step['lt_num_unlabelled_paired'] <= 2
    assert sum(step['loss_lt_cls'] > 0 for step in steps) >= 3
    stop = dict(type='StopAt', at=4)
    with pytest.raises(KeyboardInterrupt):
        run(unlabelled_config(pictures, tmp_path / 'cut', [*HOOKS, stop], teacher=True))
    resumed = run(unlabelled_config(pictures, tmp_path / 'cut', HOOKS, teacher=True), resume='auto')
    assert recorded(resumed) == steps[4:]
    for (name, mine), (_, theirs) in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().items()
    ):
        assert torch.equal(mine, theirs), name


def test_a_teacher_needs_an_average(pictures, tmp_path):
    cfg = unlabelled_config(pictures, tmp_path, HOOKS[:1], teacher=True)
    with pytest.raises(ValueError, match='EMAHook'):
        launch.build_runner(cfg).train()
