"""ReplicaDataset: what it draws depends on the seed, the image and the copy alone."""

import copy
import random

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from lt_mm.datasets.replica_dataset import ReplicaDataset
from tests.datasets.transforms.pipeline_data import BOXES, MadeDataset, make_sample, pipeline_of
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


class Noise(BaseTransform):
    """Draws from a generator of its own, as ``Albu`` does with new versions of albumentations."""

    def __init__(self):
        self.set_random_seed(None)

    def set_random_seed(self, seed):
        self.generator = np.random.default_rng(seed)

    def transform(self, results):
        noise = self.generator.integers(0, 200, results['img'].shape, dtype=np.uint8)
        return {**results, 'img': results['img'] ^ noise}


def stock_albu():
    pytest.importorskip('albumentations', reason='albumentations is not installed')
    return dict(
        type='Albu',
        transforms=[
            dict(type='RandomBrightnessContrast', p=1.0),
            dict(type='OneOf', transforms=[dict(type='GaussNoise', p=1.0)], p=1.0),
        ],
        bbox_params=dict(
            type='BboxParams',
            format='pascal_voc',
            label_fields=['gt_bboxes_labels', 'gt_ignore_flags'],
        ),
    )


@pytest.mark.parametrize(
    'make', [lambda: dict(type='RandomApply', prob=1.0, transforms=[Noise()]), stock_albu]
)
def test_transforms_with_generators_of_their_own_draw_the_same_copies(make):
    init_default_scope('mmdet')
    transform = make()

    def data_set(**more):
        boxes = [(x + 0.00499, y, x2, y2) for x, y, x2, y2 in BOXES]
        image = make_sample()['made_image']
        samples = [make_sample(boxes, image=image) for _ in range(3)]
        pipeline = pipeline_of([transform], image_only=['Albu'])
        return ReplicaDataset(MadeDataset(samples, [pipeline]), num_replicas=2, **more)

    images = [data_set()[index]['inputs'] for index in range(6)]
    some = data_set(indices=[2, 1])
    for index, image in ((3, images[3]), (0, images[4]), (1, images[5])):
        assert torch.equal(some[index]['inputs'], image)
    assert len({image.numpy().tobytes() for image in images}) == 6
    assert not torch.equal(data_set(seed=1)[0]['inputs'], images[0])
