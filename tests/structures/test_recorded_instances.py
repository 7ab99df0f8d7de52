"""Recorded instances: a stock class that travels between processes by value."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

from lt_mm.structures.recorded_instances import RecordedInstances
from tests.datasets.transforms.pipeline_data import MadeDataset, make_sample, pipeline_of


def _sent(instances):
    """What another process would get."""
    return pickle.loads(ForkingPickler.dumps(instances))


def _made(count=2):
    torch.manual_seed(0)
    return RecordedInstances.made_of(
        dict(
            bboxes=HorizontalBoxes(torch.rand(count, 4)),
            labels=torch.arange(count),
            source_matrices=torch.rand(count, 3, 3).double(),
            is_good=torch.arange(count) > 0,
            masks=BitmapMasks(np.ones((count, 4, 5), np.uint8), 4, 5),
        ),
        dict(source_id=7, source_matrix=np.eye(3)),
    )


def _assert_equal(found, expected):
    assert type(found) is RecordedInstances and isinstance(found, InstanceData)
    assert sorted(found.keys()) == sorted(expected.keys())
    assert sorted(found.metainfo_keys()) == sorted(expected.metainfo_keys())
    assert type(found.bboxes) is HorizontalBoxes
    assert torch.equal(found.bboxes.tensor, expected.bboxes.tensor)
    for name in ('labels', 'source_matrices', 'is_good'):
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])
    np.testing.assert_array_equal(found.masks.masks, expected.masks.masks)
    assert found.source_id == 7 and np.array_equal(found.source_matrix, np.eye(3))


@pytest.mark.parametrize('count', [0, 1, 2])
@pytest.mark.parametrize(
    'duplicate',
    [
        _sent,
        copy.deepcopy,
        lambda made: pickle.loads(pickle.dumps(made)),
        lambda made: made.to('cpu'),
        lambda made: made[torch.arange(len(made.labels))],
        lambda made: made.clone(),
        lambda made: InstanceData.cat([made]),
    ],
    ids=['sent', 'deepcopy', 'pickle', 'to', 'index', 'clone', 'cat'],
)
def test_duplicates_are_equal(duplicate, count):
    _assert_equal(duplicate(_made(count)), _made(count))


def test_what_was_sent_can_be_written_into():
    made = _made()
    found = _sent(made)
    found.labels.zero_()
    found.bboxes.tensor.zero_()
    _assert_equal(made, _made())


def test_tensors_that_numpy_cannot_hold():
    made = RecordedInstances.made_of(
        dict(
            half=torch.tensor([1.5], dtype=torch.bfloat16), leaf=torch.ones(1, requires_grad=True)
        ),
        {},
    )
    found = _sent(made)
    assert found.half.dtype == torch.bfloat16 and found.half.item() == 1.5
    assert found.leaf.requires_grad and found.leaf.item() == 1


def test_workers_share_only_the_image():
    init_default_scope('mmdet')
    dataset = MadeDataset([make_sample(ignored=[1])], [pipeline_of([])])
    (batch,) = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
    assert batch['inputs'][0].is_shared()
    sample = batch['data_samples'][0]
    for instances in (sample.gt_instances, sample.ignored_instances):
        assert len(instances) > 0 and not instances.bboxes.tensor.is_shared()
        for name in ('labels', 'source_ids', 'source_matrices', 'visibility'):
            assert not instances[name].is_shared()
