"""What transforms that choose among others tell of what they did."""

import copy
import pickle

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS as MMDET
from mmengine.registry import init_default_scope
from mmpretrain.registry import TRANSFORMS as MMPRETRAIN

from lt_mm.datasets.transforms.applied_transforms import tell_inner
from tests.datasets.transforms.pipeline_data import make_sample, pipeline_of, run

FLIP = dict(type='RandomFlip', prob=1.0)
COLOR = dict(type='Color', prob=1.0)
HOLE = dict(type='CutOut', n_holes=1, cutout_shape=(4, 4))
NO_COLOR = dict(type='Color', prob=0.0)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def inside(transforms, seed=0):
    """What each recorded transform had inside it, by its name."""
    sample = run(pipeline_of(transforms), make_sample(sample_idx=5), seed)['data_samples']
    return {step.name: step.inside for step in sample.applied_transforms}


@pytest.mark.parametrize(
    'transform, expected',
    [
        (dict(type='RandomChoice', transforms=[[COLOR, FLIP]]), ('Color', 'RandomFlip')),
        # It ran and did nothing.
        (dict(type='RandomChoice', transforms=[[NO_COLOR, FLIP]]), ('RandomFlip',)),
        (dict(type='RandomApply', transforms=[COLOR], prob=1.0), ('Color',)),
        (dict(type='AutoAugment', policies=[[COLOR, NO_COLOR]]), ('Color',)),
        (dict(type='RandAugment', aug_space=[[COLOR]], aug_num=1), ('Color',)),
        # It writes into the image that it gets.
        (dict(type='RandomChoice', transforms=[[HOLE]]), ('CutOut',)),
        (
            dict(
                type='RandomChoice',
                transforms=[[dict(type='RandomApply', transforms=[COLOR, COLOR], prob=1.0)]],
            ),
            ('Color', 'Color'),
        ),
    ],
)
def test_what_acted_is_named(transform, expected):
    assert inside([transform]) == {transform['type']: expected}


@pytest.mark.parametrize(
    'transform',
    [
        dict(type='RandomChoice', transforms=[[NO_COLOR]]),
        dict(type='RandomApply', transforms=[COLOR], prob=0.0),
    ],
)
def test_what_did_nothing_is_not_recorded(transform):
    assert inside([transform]) == {}


def test_each_replica_has_its_own_choice():
    transform = dict(type='RandomChoice', transforms=[[COLOR], [FLIP]])
    found = {inside([transform], seed)['RandomChoice'] for seed in range(8)}
    assert found == {('Color',), ('RandomFlip',)}


def test_a_stock_policy_of_a_classifier():
    """The images are those of the stock transform, and the names those that changed them."""
    init_default_scope('mmpretrain')
    policy = dict(type='RandAugment', policies='timm_increasing', num_policies=2, magnitude_level=9)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    stock, told = MMPRETRAIN.build(policy), MMPRETRAIN.build(policy)
    tell_inner(told)
    tell_inner(told)  # once is enough
    names = {type(each).__name__ for each in told.transforms}
    seen = []
    for _ in range(2):
        for seed in range(12):
            np.random.seed(seed)
            expected = stock(dict(img=image.copy()))['img']
            np.random.seed(seed)
            results = told(dict(img=image.copy()))
            assert np.array_equal(results['img'], expected)
            own = results.get('lt_applied_inside', [])
            assert set(own) <= names and len(own) <= 2
            assert own or np.array_equal(expected, image)
            seen.append(own)
        # What worker processes and wrapped data sets do to a pipeline.
        told = pickle.loads(pickle.dumps(copy.deepcopy(told)))
    assert seen[:12] == seen[12:] and any(len(own) == 2 for own in seen)


def test_classes_stay_as_they_are():
    chosen = MMDET.build(dict(type='RandomChoice', transforms=[[COLOR]]))
    before = type(chosen.transforms[0].transforms[0])
    tell_inner(chosen)
    assert type(chosen.transforms[0].transforms[0]) is before
