"""Batch augments of the stock data preprocessor move the record with the boxes."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import BatchSyncRandomResize, DetDataPreprocessor
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.logging import MessageHub
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from lt_mm.models.recorded_augments import RecordingDetDataPreprocessor
from lt_mm.structures.errors import LostRecordError
from tests import reference
from tests.datasets.transforms.pipeline_data import make_sample, pipeline_of, run


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


RESIZE = dict(type='BatchSyncRandomResize', random_size_range=(32, 128), interval=1)
AUGMENTS = [
    dict(type='BatchFixedSizePad', size=(96, 128)),
    RESIZE,
    dict(type='BatchResize', scale=(50, 90), pad_size_divisor=32),
]


class BatchHalf(nn.Module):
    """An augment of a user, with its scale."""

    def forward(self, inputs, samples):
        for sample in samples:
            sample.gt_instances.bboxes *= 0.5
            sample.set_metainfo(dict(img_shape=tuple(side // 2 for side in sample.img_shape)))
        return inputs[..., ::2, ::2], samples


class BatchKnownHalf(BatchHalf):
    def box_scale(self, before, after):
        return 0.5, 0.5


def batch():
    flip = [dict(type='RandomFlip', prob=0.5), dict(type='Resize', scale=(96, 64))]
    samples = [make_sample(sample_idx=0), make_sample([], [], sample_idx=1), make_sample()]
    samples[2]['sample_idx'] = 2
    packed = [run(pipeline_of(flip), sample, seed) for seed, sample in enumerate(samples)]
    keys = ('inputs', 'data_samples')
    return {key: [each[key] for each in packed] for key in keys}


def preprocessed(kind, augments, steps=3):
    """The batch of the last step."""
    hub = MessageHub.get_current_instance()
    preprocessor = MODELS.build(
        dict(type=kind, pad_size_divisor=32, batch_augments=copy.deepcopy(augments))
    )
    random.seed(5)
    for step in range(steps):
        hub.update_info('iter', step)
        data = preprocessor(batch(), training=True)
    return data


@pytest.mark.parametrize('augment', AUGMENTS, ids=lambda augment: augment['type'])
def test_matrices_follow_the_boxes(augment):
    stock = preprocessed('mmdet.DetDataPreprocessor', [augment])
    ours = preprocessed('lt_mm.RecordingDetDataPreprocessor', [augment])
    assert torch.equal(ours['inputs'], stock['inputs'])
    for sample, expected in zip(ours['data_samples'], stock['data_samples']):
        instances = sample.gt_instances
        assert torch.equal(instances.bboxes, expected.gt_instances.bboxes)
        assert sample.img_shape == expected.img_shape == sample.recorded_shape
        assert instances.recorded_shape == sample.recorded_shape
        for row, box in enumerate(instances.source_boxes.numpy()):
            matrix = instances.source_matrices[row].numpy()
            moved = reference.move_box(box, matrix)
            np.testing.assert_allclose(moved, instances.bboxes[row], atol=1e-3)
            np.testing.assert_allclose(matrix, sample.source_matrix)
            np.testing.assert_allclose(matrix, instances.source_matrix)
    if augment['type'] != 'BatchFixedSizePad':
        assert ours['data_samples'][1].applied_transforms[-1].name == augment['type']
        assert expected.img_shape != (64, 96)


def test_an_augment_of_a_user_tells_its_scale():
    MMDET_MODELS.register_module(module=BatchKnownHalf, force=True)
    augment = dict(type='BatchKnownHalf')
    sample = preprocessed('lt_mm.RecordingDetDataPreprocessor', [augment])['data_samples'][0]
    moved = reference.move_box(
        sample.gt_instances.source_boxes[0].numpy(), sample.gt_instances.source_matrices[0].numpy()
    )
    np.testing.assert_allclose(moved, sample.gt_instances.bboxes[0], atol=1e-3)


def test_an_unknown_augment_is_refused_when_the_model_is_built():
    MMDET_MODELS.register_module(module=BatchHalf, force=True)
    with pytest.raises(LostRecordError, match=r'BatchHalf.*box_scale.*batch_augments'):
        MODELS.build(
            dict(type='lt_mm.RecordingDetDataPreprocessor', batch_augments=[dict(type='BatchHalf')])
        )


def test_copies_record():
    built = MODELS.build(dict(type='lt_mm.RecordingDetDataPreprocessor', batch_augments=[RESIZE]))
    for duplicate in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert isinstance(duplicate, RecordingDetDataPreprocessor)
        assert isinstance(duplicate.batch_augments[0], BatchSyncRandomResize)
        assert type(duplicate.batch_augments[0]) is type(built.batch_augments[0])
    assert isinstance(built, DetDataPreprocessor)
