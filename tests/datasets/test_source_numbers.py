"""Source ids of data sets that are joined, wrapped, or the user's own."""

import copy

import numpy as np
import pytest
import torch
from mmdet.datasets import MultiImageMixDataset
from mmdet.datasets.dataset_wrappers import ConcatDataset as DetConcatDataset
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, RepeatDataset, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch.utils.data import DataLoader

from lt_mm.datasets import (
    GroupedRepeatAugSampler,
    InfiniteGroupedRepeatAugSampler,
    InvertiblePipeline,
    ReplicaDataset,
)
from lt_mm.datasets.source_numbers import number_sources
from lt_mm.structures import LostRecordError, MissingRecordError
from tests.datasets.transforms.pipeline_data import PACK, MadeDataset, make_sample, pipeline_of

FLIP = dict(type='RandomFlip', prob=0.5)
MOSAIC = dict(type='Mosaic', img_scale=(60, 80), prob=1.0)


class BalancedDataset(MadeDataset):
    """Tells its classes, as ClassBalancedDataset wants it."""

    def get_cat_ids(self, idx):
        return [1] if idx else [0]


class UserDataset(torch.utils.data.Dataset):
    """A data set that does not derive from MMEngine's; its arrays have no path."""

    def __init__(self, count, shift=0, **kwargs):
        self.count, self.shift = count, shift
        self.made = InvertiblePipeline([dict(type='mmpretrain.PackInputs')], **kwargs)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = np.full((8, 8, 3), index, np.uint8)
        return self.made(dict(img=image, gt_label=0, sample_idx=index + self.shift))


class UserWrapper:
    """Joins data sets under a name of its own."""

    def __init__(self, **parts):
        self.parts = parts
        self.places = [(part, index) for part in parts.values() for index in range(len(part))]

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        part, place = self.places[index]
        return part[place]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def made(count, kind=MadeDataset, pack=PACK, **kwargs):
    samples = [make_sample(shape=(60, 80)) for _ in range(count)]
    return kind(samples, [pipeline_of([FLIP], pack=pack, **kwargs)])


def ids_of(dataset):
    return [int(dataset[index]['data_samples'].source_id) for index in range(len(dataset))]


def joined(*parts):
    """A ConcatDataset as a config gives it, which may hold others."""
    return dict(type='ConcatDataset', datasets=list(parts))


# Joined data sets, and the ids of their samples in order.
CASES = {
    'one': (lambda: made(3), [0, 1, 2]),
    'joined': (lambda: ConcatDataset([made(2), made(3)]), range(5)),
    "MMDetection's": (lambda: DetConcatDataset([made(2), made(3)]), range(5)),
    'nested': (lambda: DATASETS.build(joined(joined(made(2), made(3)), made(4))), range(9)),
    'repeated': (
        lambda: UserWrapper(a=RepeatDataset(made(2), 2), b=RepeatDataset(made(2), 2)),
        [0, 1, 0, 1, 2, 3, 2, 3],
    ),
    'balanced': (
        lambda: UserWrapper(
            a=ClassBalancedDataset(made(3, BalancedDataset), 0.9),
            b=ClassBalancedDataset(made(2, BalancedDataset), 1e-3),
        ),
        [0, 0, 1, 1, 2, 2, 3, 4],
    ),
    'own kind': (lambda: UserWrapper(a=UserDataset(3), b=UserDataset(2)), range(5)),
    'mixed kinds': (lambda: UserWrapper(a=UserDataset(3), b=made(2)), range(5)),
    'given': (
        lambda: ConcatDataset([made(2, sample_idx_offset=7), made(2, sample_idx_offset=4)]),
        [7, 8, 4, 5],
    ),
    'the second is given': (
        lambda: ConcatDataset([made(2), made(2, sample_idx_offset=2), made(1)]),
        range(5),
    ),
    'no room before the given one': (
        lambda: ConcatDataset([made(3), made(2, sample_idx_offset=1), made(1)]),
        [3, 4, 5, 1, 2, 0],
    ),
}


@pytest.mark.parametrize('make', [GroupedRepeatAugSampler, InfiniteGroupedRepeatAugSampler])
@pytest.mark.parametrize('case', CASES)
def test_a_sampler_numbers_the_sources(case, make):
    build, expected = CASES[case]
    dataset = build()
    make(dataset, num_repeats=2, seed=0)
    assert ids_of(dataset) == list(expected)
    sample = dataset[0]['data_samples']
    assert sample.num_replicas == 2 and not sample.is_stand_in


@pytest.mark.parametrize('case', CASES)
def test_numbering_again_changes_nothing(case):
    build, expected = CASES[case]
    dataset = build()
    for _ in range(2):
        number_sources(dataset)
    assert ids_of(dataset) == list(expected)


def test_replica_dataset_numbers_the_sources():
    dataset = ReplicaDataset(ConcatDataset([made(2), made(1)]), num_replicas=2)
    assert ids_of(dataset) == [0, 0, 1, 1, 2, 2]


def test_worker_processes_have_the_numbers():
    dataset = ConcatDataset([made(3), made(3)])
    sampler = GroupedRepeatAugSampler(dataset, num_repeats=2, seed=0)
    loader = DataLoader(
        dataset, batch_size=4, sampler=sampler, num_workers=2, collate_fn=pseudo_collate
    )
    found = [
        (int(sample.source_id), sample.num_replicas)
        for batch in loader
        for sample in batch['data_samples']
    ]
    assert found == [(index, 2) for index in sampler]


@pytest.mark.parametrize('wrapped', [True, False])
def test_mosaic_over_joined_data_sets(wrapped):
    """Each box of a merged image has the number of its own image, and so has the image."""
    # An offset of the outer pipeline has no effect.
    packing = dict(type='lt_mm.InvertiblePipeline', transforms=[PACK], sample_idx_offset=0)
    mosaic = copy.deepcopy(MOSAIC)
    outer = [dict(packing, transforms=[mosaic, PACK])] if wrapped else [mosaic, packing]
    inner = joined(made(2, pack=None), made(3, pack=None))
    dataset = MultiImageMixDataset(inner, outer)
    GroupedRepeatAugSampler(dataset, num_repeats=2, seed=0)
    assert ids_of(dataset) == list(range(5))
    np.random.seed(0)
    sources = set()
    for _ in range(10):
        sources |= set(dataset[4]['data_samples'].gt_instances.source_ids[:, 0].tolist())
    assert sources == set(range(5))


def test_one_data_set_twice_keeps_its_numbers():
    part = made(2)
    dataset = ConcatDataset([part, part, made(1)])
    number_sources(dataset)
    assert ids_of(dataset) == [0, 1, 0, 1, 2]


def test_one_pipeline_of_two_data_sets_is_refused():
    pipeline = pipeline_of([FLIP])
    parts = [MadeDataset([make_sample()], [pipeline]) for _ in range(2)]
    with pytest.raises(MissingRecordError, match='MadeDataset and a MadeDataset .*same'):
        GroupedRepeatAugSampler(ConcatDataset(parts), num_repeats=2, seed=0)


def test_given_ranges_that_overlap_are_refused():
    parts = [made(3, sample_idx_offset=4), made(3), made(3, sample_idx_offset=6)]
    with pytest.raises(MissingRecordError, match='from 6 on .*sample_idx_offset'):
        GroupedRepeatAugSampler(ConcatDataset(parts), num_repeats=2, seed=0)


def test_numbers_that_leave_their_range_are_refused():
    number_sources(UserDataset(3, shift=100))
    assert ids_of(UserDataset(3, shift=100)) == [100, 101, 102]  # alone they harm nobody
    dataset = UserWrapper(a=UserDataset(3, shift=2), b=UserDataset(2))
    number_sources(dataset)
    with pytest.raises(LostRecordError, match='sample_idx=3, but its data set has 3'):
        ids_of(dataset)


def test_data_sets_without_a_record_pass():
    number_sources(range(5))
    number_sources(MadeDataset([make_sample()], [dict(type='Resize', scale=(9, 9))]))
