"""ReplicaDataset: what it draws depends on the seed, the image and the copy alone."""

import copy
import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from lt_mm.datasets.replica_dataset import ReplicaDataset
from tests.evaluation.random_models import classifier_fixture, pictures_fixture  # noqa: F401 (fixtures)


def test_replicas_are_a_function_of_the_seed_and_the_image(classifier):
    config, _, options = classifier
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(copy.deepcopy(options))
    init_default_scope('mmpretrain')
    inner = DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=cfg.train_pipeline))

    def data_set(**more):
        return ReplicaDataset(inner, num_replicas=2, **more)

    every, some = data_set(), data_set(indices=[7, 3])
    assert len(every) == 24 and len(some) == 4 and len(data_set(max_images=5)) == 10
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    images = [every[index]['inputs'] for index in range(24)]
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tolist() == state[1]
    assert torch.equal(torch.get_rng_state(), state[2])
    for index, image in ((3, images[7]), (2, images[6]), (0, images[14])):
        assert torch.equal(some[index]['inputs'], image)
    assert not torch.equal(images[6], images[7])
    other = data_set(seed=1)
    assert any(not torch.equal(other[index]['inputs'], images[index]) for index in range(24))
    assert every.metainfo['classes'] == ('0', '1')
    assert some.get_data_info(1)['img_path'] == every.get_data_info(14)['img_path']
    for wrong in (
        dict(indices=[12]),
        dict(indices=[]),
        dict(max_images=0),
        dict(seed=-1),
        dict(indices=[1], max_images=1),
    ):
        with pytest.raises(ValueError, match='expected'):
            data_set(**wrong)
