"""Stock Runners whose batches cut groups apart, or whose config is half done."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner

from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError
from tests.paths import CONFIGS
from tests.training_data import classifier_config, detector_options, recorded


@TRANSFORMS.register_module()
class RejectEveryFifth(BaseTransform):
    """Rejects samples, as a crop does that leaves nothing."""

    calls = 0

    def transform(self, results):
        self.calls += 1
        return None if self.calls % 5 == 0 else results


def classifier(pictures, work_dir, batch_size=8, num_repeats=4, **more):
    sampler = {
        'train_dataloader.batch_size': batch_size,
        'train_dataloader.sampler.num_repeats': num_repeats,
    }
    return classifier_config(pictures, work_dir, **sampler, **more)


def detector(shapes, work_dir, **more):
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_lt_demo.py'))
    cfg.merge_from_dict(detector_options(shapes, work_dir=str(work_dir), **more))
    return cfg


def log_of(work_dir: Path) -> str:
    return '\n'.join(path.read_text() for path in work_dir.glob('*/*.log'))


@pytest.mark.parametrize('num_repeats, batch_size', [(2, 3), (3, 5), (4, 6), (4, 2)])
def test_cut_groups_stop_a_classifier_at_the_first_step(
    pictures, tmp_path, num_repeats, batch_size
):
    runner = Runner.from_cfg(classifier(pictures, tmp_path, batch_size, num_repeats))
    with pytest.raises(UnpairedBatchError, match='split between batches') as error:
        runner.train()
    assert f'whole groups of {num_repeats}' in str(error.value)
    assert 'train_dataloader.batch_size that m divides' in str(error.value)
    assert runner.iter == 0


def test_cut_groups_stop_a_detector_at_the_first_step(shapes, tmp_path):
    runner = Runner.from_cfg(detector(shapes, tmp_path, **{'train_dataloader.batch_size': 3}))
    with pytest.raises(UnpairedBatchError, match='whole groups of 2'):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize('num_repeats, batch_size', [(2, 6), (4, 8), (12, 12)])
def test_whole_groups_train(pictures, tmp_path, num_repeats, batch_size):
    runner = Runner.from_cfg(classifier(pictures, tmp_path, batch_size, num_repeats))
    runner.train()
    assert all(step['lt_num_paired'] == batch_size for step in recorded(runner))
    assert 'no head of this process' not in log_of(tmp_path)


def test_images_that_the_data_set_replaces_do_not_stop_training(pictures, tmp_path):
    """The stock data set takes another image where the pipeline gives None."""
    cfg = classifier(pictures, tmp_path, 12, 3)
    dataset = cfg.train_dataloader.dataset
    loading, *others, packing = dataset.pipeline[0].transforms
    # A pipeline that does not load itself leaves the choice of another image to the data set.
    dataset.pipeline[0].transforms = [*others, dict(type='RejectEveryFifth'), packing]
    dataset.pipeline = [loading, *dataset.pipeline]
    runner = Runner.from_cfg(cfg)
    batches = []
    head, watch = runner.model.head, type(runner.model.head)._lt_watch_groups

    def spy(batch):
        batches.append(copy.copy(batch))
        watch(head, batch)

    head._lt_watch_groups = spy
    runner.train()
    torn = [
        batch for batch in batches if any(size % 3 for size in Counter(batch.source_ids).values())
    ]
    assert len(batches) == 3 and torn
    assert all(set(batch.num_replicas) == {3} and batch.num_stand_ins for batch in torn)


def test_joined_data_sets_have_numbers_of_their_own(pictures, tmp_path):
    cfg = classifier(pictures, tmp_path, 12, 2)
    part = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, part])
    runner = Runner.from_cfg(cfg)
    seen = Counter()
    head, gather = runner.model.head, type(runner.model.head).lt_gather

    def spy(part):
        seen.update(part.source_ids)
        return gather(head, part)

    head.lt_gather = spy
    runner.train()
    assert seen == dict.fromkeys(range(24), 2)


def test_sampler_and_pipeline_without_the_head_say_so(pictures, tmp_path):
    cfg = classifier(pictures, tmp_path)
    cfg.model.head = cfg.model.head.head
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert np.isfinite(recorded(runner)[-1]['loss'])
    log = log_of(tmp_path)
    assert log.count('no head of this process compares the replicas') == 1
    assert "dict(type='lt_mm.LossTransformHead'" in log


def test_head_and_sampler_without_the_pipeline_stop(pictures, tmp_path):
    cfg = classifier(pictures, tmp_path)
    cfg.train_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline[0].transforms
    runner = Runner.from_cfg(cfg)
    with pytest.raises(MissingRecordError, match='InvertiblePipeline'):
        runner.train()
    assert runner.iter == 0
