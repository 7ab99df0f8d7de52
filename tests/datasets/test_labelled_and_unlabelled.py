"""Labelled and unlabelled images in one data set, from the sampler to the packed sample."""

import copy
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmcv.transforms import RandomChoice
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.datasets.transforms import FilterAnnotations, RandomCrop
from mmdet.registry import DATASETS as DET_DATASETS
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import ConcatDataset, pseudo_collate
from mmengine.registry import init_default_scope
from mmpretrain.datasets import CustomDataset
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.registry import DATASETS as CLS_DATASETS
from torch.utils.data import BatchSampler, DataLoader

from lt_mm.datasets import (
    GroupedRepeatAugSampler,
    InfiniteGroupedRepeatAugSampler,
    LabelledAndUnlabelled,
    WithWeakCopies,
)
from lt_mm.datasets.samplers.repeat_aug import check_train_dataloader
from lt_mm.structures import MissingRecordError
from tests.datasets.transforms.pipeline_data import (
    PACK,
    LoadMadeImage,
    MadeDataset,
    make_sample,
    pipeline_of,
)
from tests.training_data import write_pictures

FLIP = dict(type='RandomFlip', prob=0.5)
CLS_PIPELINE = [
    dict(
        type='lt_mm.InvertiblePipeline',
        transforms=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
]


def made(count, weak=False, **options):
    init_default_scope('mmdet')
    pipeline = pipeline_of([FLIP])
    if weak:
        pipeline = pipeline_of(
            [dict(type='RandomFlip', prob=1.0)],
            weak=[LoadMadeImage(), dict(type='LoadAnnotations', with_bbox=True), PACK],
        )
    return MadeDataset(
        [make_sample() for _ in range(count)],
        [pipeline],
        metainfo=dict(classes=tuple('abcdefgh')),
        **options,
    )


def joined(labelled=6, unlabelled=5):
    return LabelledAndUnlabelled(labelled=made(labelled), unlabelled=made(unlabelled))


def sampler_of(dataset, rank=0, world_size=1, **options):
    options = dict(num_repeats=2, unlabelled_share=0.5, seed=0) | options
    with patch('lt_mm.datasets.samplers.repeat_aug.get_dist_info', return_value=(rank, world_size)):
        return GroupedRepeatAugSampler(dataset, **options)


@pytest.mark.parametrize('workers', [0, 2])
def test_unlabelled_samples_have_no_annotations(workers):
    dataset = joined()
    loader = DataLoader(
        dataset,
        sampler=sampler_of(dataset),
        batch_size=4,
        num_workers=workers,
        collate_fn=pseudo_collate,
    )
    labelled_ids, unlabelled_ids = set(), set()
    for batch in loader:
        records = [sample.metainfo for sample in batch['data_samples']]
        assert [record['is_labelled'] for record in records] == [True, True, False, False]
        assert [record['num_replicas'] for record in records] == [1, 1, 2, 2]
        assert records[2]['source_id'] == records[3]['source_id']
        for sample in batch['data_samples']:
            instances = sample.gt_instances
            assert instances.is_labelled == sample.is_labelled
            assert len(instances) == (3 if sample.is_labelled else 0)
            assert instances.source_matrix.shape == (3, 3)
            ids = labelled_ids if sample.is_labelled else unlabelled_ids
            ids.add(sample.source_id)
    assert labelled_ids == set(range(6))
    assert len(unlabelled_ids) == 3 and unlabelled_ids < set(range(6, 11))


def test_what_a_stock_wrapper_tells():
    dataset = LabelledAndUnlabelled(labelled=made(3), unlabelled=made(2))
    dataset.labelled.get_cat_ids = lambda place: [place]
    assert len(dataset) == 5 and dataset.metainfo == dataset.labelled.metainfo
    assert len(dataset.get_data_info(1)['instances']) == 3
    assert dataset.get_data_info(3)['instances'] == dataset.get_data_info(-1)['instances'] == []
    assert [dataset.get_cat_ids(index) for index in range(5)] == [[0], [1], [2], [], []]
    assert [dataset.is_labelled(index) for index in range(5)] == [True] * 3 + [False] * 2
    with pytest.raises(IndexError, match='index 5 of 5'):
        dataset[5]
    # The stock data set still has its annotations, for those who use it alone.
    assert len(dataset.unlabelled.get_data_info(0)['instances']) == 3


def test_lists_can_be_loaded_later():
    labelled = made(3, lazy_init=True)
    dataset = LabelledAndUnlabelled(
        labelled=labelled, unlabelled=made(2, lazy_init=True), lazy_init=True
    )
    assert not labelled._fully_initialized
    dataset.full_init()
    assert labelled._fully_initialized and len(dataset) == 5


def test_the_order_goes_on_after_an_interruption():
    dataset = joined()
    sampler = sampler_of(dataset)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler)
    resumed = sampler_of(joined())
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    groups = [index for epoch in epochs for index in epoch if index >= 6][::2]
    assert sorted(groups[:5]) == list(range(6, 11))


def test_ranks_get_disjoint_parts():
    streams = [list(sampler_of(joined(8, 9), rank, 2)) for rank in range(2)]
    assert len(streams[0]) == len(streams[1])
    assert not set(streams[0]) & set(streams[1])
    assert {index for stream in streams for index in stream if index < 8} == set(range(8))


def test_without_a_share_both_parts_are_repeated():
    dataset = joined(3, 2)
    indices = list(sampler_of(dataset, unlabelled_share=None))
    assert sorted(indices) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {dataset[index]['data_samples'].num_replicas for index in indices} == {2}


@pytest.fixture
def pictures(tmp_path):
    init_default_scope('mmpretrain')
    return write_pictures(tmp_path / 'pictures')


@pytest.mark.parametrize('registry', [CLS_DATASETS, DET_DATASETS])
@pytest.mark.parametrize('folder', [True, False])
def test_built_from_a_config(registry, folder, pictures):
    labelled = dict(type='mmpretrain.CustomDataset', data_root=str(pictures), pipeline=CLS_PIPELINE)
    config = dict(
        type='lt_mm.LabelledAndUnlabelled',
        labelled=labelled,
        unlabelled=str(pictures) if folder else dict(labelled),
    )
    if not folder:
        del config['unlabelled']['pipeline']
    dataset = registry.build(copy.deepcopy(config))
    assert isinstance(dataset.labelled, CustomDataset)
    assert len(dataset) == 24 and dataset.metainfo['classes'] == ('0', '1')
    sampler = sampler_of(dataset)
    batch = next(iter(DataLoader(dataset, 4, sampler=sampler, collate_fn=pseudo_collate)))
    assert all(len(sample.gt_label) == sample.is_labelled for sample in batch['data_samples'])
    # The stock preprocessor takes the batch, with scores too.
    packed = ClsDataPreprocessor(to_onehot=True, num_classes=2)(batch)
    assert [sample.gt_score.sum() for sample in packed['data_samples']] == [1, 1, 0, 0]
    assert packed['inputs'].shape == (4, 3, 32, 32)


def test_folders_that_cannot_be_used(tmp_path, pictures):
    labelled = dict(type='CustomDataset', data_root=str(pictures), pipeline=CLS_PIPELINE)
    with pytest.raises(ValueError, match='there is no image in'):
        LabelledAndUnlabelled(labelled=labelled, unlabelled=str(tmp_path / 'nothing'))
    with pytest.raises(ValueError, match='there is no pipeline for its images'):
        LabelledAndUnlabelled(labelled=made(2), unlabelled=str(pictures))


def test_parts_need_a_recording_pipeline_each():
    plain = MadeDataset([make_sample()], [])
    with pytest.raises(MissingRecordError, match='unlabelled part, a MadeDataset, has no'):
        LabelledAndUnlabelled(labelled=made(1), unlabelled=plain)
    one = made(1)
    with pytest.raises(MissingRecordError, match='one and the same'):
        LabelledAndUnlabelled(labelled=one, unlabelled=one)


def test_samplers_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match='does not tell which images are'):
        sampler_of(ConcatDataset([made(2), made(2)]))
    for options in (dict(mode='v1'), dict(placement='spread'), dict(repeat_fraction=0.5)):
        with pytest.raises(ValueError, match='does not go with'):
            sampler_of(joined(), **options)
    weak = WithWeakCopies(made(4, weak=True))
    for options in (dict(start_epoch=2, mode='v1'), dict(repeat_fraction=0.5)):
        with pytest.raises(ValueError, match='weak copies'):
            sampler_of(weak, unlabelled_share=None, **options)
    dataset = joined()
    for size, kind, message in (
        (6, BatchSampler, 'multiple of 4'),
        (4, AspectRatioBatchSampler, 'regroups'),
    ):
        batches = kind(sampler_of(dataset), size, False)
        with pytest.raises(ValueError, match=message):
            check_train_dataloader(DataLoader(dataset, batch_sampler=batches))
    check_train_dataloader(
        DataLoader(dataset, batch_sampler=BatchSampler(sampler_of(dataset), 8, False))
    )


def test_annotations_of_unlabelled_images_are_not_loaded():
    """Not even a damaged one is looked at."""
    dataset = made(2)
    for sample in dataset.data_list:
        sample['instances'][0]['bbox'] = [np.nan] * 4
    mixed = LabelledAndUnlabelled(labelled=made(1), unlabelled=dataset)
    assert len(mixed[1]['data_samples'].gt_instances) == 0


def is_flipped(sample):
    return sample.source_matrix[0, 0] < 0


def test_one_copy_in_each_group_is_weak():
    """Images come from another pipeline, with the same source, records and annotations."""
    dataset = LabelledAndUnlabelled(labelled=made(4), unlabelled=made(3, weak=True))
    loader = DataLoader(dataset, 4, sampler=sampler_of(dataset), collate_fn=pseudo_collate)
    for batch in loader:
        samples = batch['data_samples']
        assert [sample.is_weak for sample in samples] == [False, False, True, False]
        weak, strong = samples[2:]
        assert weak.source_id == strong.source_id and weak.num_replicas == 2
        assert not is_flipped(weak) and is_flipped(strong)
        assert len(weak.gt_instances) == 0 and weak.gt_instances.is_weak


@pytest.mark.parametrize('mode', ['full', 'v1', 'endless'])
def test_labelled_groups_with_a_weak_copy(mode):
    dataset = WithWeakCopies(made(5, weak=True))
    if mode == 'endless':
        sampler = InfiniteGroupedRepeatAugSampler(dataset, num_repeats=3, seed=0)
        sampler.skip(6)
    else:
        sampler = GroupedRepeatAugSampler(dataset, num_repeats=3, mode=mode, seed=0)
    indices = [index for index, _ in zip(iter(sampler), range(6))]
    for row in range(0, 6, 3):
        group = [dataset[index]['data_samples'] for index in indices[row : row + 3]]
        assert [sample.is_weak for sample in group] == [True, False, False]
        assert [is_flipped(sample) for sample in group] == [False, True, True]
        assert len({sample.source_id for sample in group}) == 1
        assert all(sample.is_labelled and len(sample.gt_instances) == 3 for sample in group)


def test_a_bad_image_is_replaced_in_the_whole_group(pictures):
    pipeline = [dict(CLS_PIPELINE[0], weak=CLS_PIPELINE[0]['transforms'])]
    weak = WithWeakCopies(dict(type='CustomDataset', data_root=str(pictures), pipeline=pipeline))
    Path(weak.get_data_info(1)['img_path']).write_bytes(b'no image')
    samples = [weak[index]['data_samples'] for index in (12, 0, 13, 1, 14, 2)]
    assert [sample.source_id for sample in samples] == [0, 0, 0, 0, 2, 2]
    assert [sample.is_weak for sample in samples] == [True, False] * 3
    assert [sample.is_stand_in for sample in samples] == [False, False, True, True, False, False]


def test_weak_copies_need_a_pipeline():
    with pytest.raises(MissingRecordError, match='no pipeline for weak copies'):
        WithWeakCopies(made(2))
    with pytest.raises(IndexError, match='no weak copy 2 of 2'):
        WithWeakCopies(made(2, weak=True))[4]
    with pytest.raises(ValueError, match='both begin with loading'):
        pipeline_of([FLIP], weak=[dict(type='PackDetInputs')])


@pytest.mark.parametrize('inside', [False, True], ids=['alone', 'in RandomChoice'])
@pytest.mark.parametrize(
    'transform, keeps',
    [
        (RandomCrop((4, 4)), False),
        (RandomCrop((4, 4), allow_negative_crop=True), True),
        (FilterAnnotations(min_gt_bbox_wh=(1, 1)), True),  # keeps what comes without a box
    ],
    ids=['crop', 'negative crop', 'filter'],
)
def test_a_pipeline_that_leaves_out_images_without_boxes(transform, keeps, inside):
    boxes = HorizontalBoxes(torch.zeros(0, 4))
    empty = dict(img=np.zeros((8, 8, 3)), img_shape=(8, 8), gt_bboxes=boxes)
    assert (transform(empty) is not None) == keeps  # what the stock class does
    dataset = made(2)
    own = RandomChoice([[transform]]) if inside else transform
    dataset.pipeline.transforms[0].transforms.insert(-1, own)
    if keeps:
        LabelledAndUnlabelled(labelled=made(2), unlabelled=dataset)
        return
    with pytest.raises(ValueError, match=r'leaves out .*RandomCrop\(allow_negative_crop=True\)'):
        LabelledAndUnlabelled(labelled=made(2), unlabelled=dataset)
