"""The samplers in loaders, batch samplers, registries and worlds of ranks."""

import gc
import itertools
from collections import Counter
from unittest.mock import patch

import pytest
from mmdet.datasets.samplers import AspectRatioBatchSampler, MultiDataAspectRatioBatchSampler
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DefaultScope, init_default_scope
from mmpretrain.models.heads import LinearClsHead
from torch.utils.data import BatchSampler, DataLoader, Dataset

from lt_mm.datasets.samplers.repeat_aug import (
    GroupedRepeatAugSampler,
    InfiniteGroupedRepeatAugSampler,
    check_train_dataloader,
)
from lt_mm.models.heads import wrap_head
from lt_mm.structures import comparing_heads

BOTH = [GroupedRepeatAugSampler, InfiniteGroupedRepeatAugSampler]


class _Images(Dataset):
    """Images of which every third is upright; an item is its index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int  # MMDetection's data sets want plain ints.
        return index

    def get_data_info(self, index):
        width = 20 if index % 3 == 0 else 40
        return dict(width=width, height=30)

    def get_dataset_source(self, index):
        return int(index >= self.size // 2)


def _sampler(size=20, rank=0, world_size=1, cls=GroupedRepeatAugSampler, **kw):
    kw.setdefault('seed', 0)
    with patch('lt_mm.datasets.samplers.repeat_aug.get_dist_info', return_value=(rank, world_size)):
        return cls(_Images(size), **kw)


def _world(world_size, **kw):
    return [list(_sampler(rank=rank, world_size=world_size, **kw)) for rank in range(world_size)]


def _take(sampler, count):
    return list(itertools.islice(sampler, count))


def _assert_whole_groups(batch, num_repeats):
    assert all(n % num_repeats == 0 for n in Counter(batch).values())


class TestEpoch:
    def test_by_hand(self):
        sampler = _sampler(3, num_repeats=2, shuffle=False)
        assert list(sampler) == [0, 0, 1, 1, 2, 2]
        assert len(sampler) == 6

    def test_defaults(self):
        indices = list(_sampler(20))
        assert Counter(indices) == dict.fromkeys(range(20), 3)
        assert indices[::3] == indices[1::3] == indices[2::3]
        assert indices[::3] != sorted(indices[::3])

    @pytest.mark.parametrize('mode', ['full', 'v1'])
    @pytest.mark.parametrize('placement', ['rank', 'spread'])
    @pytest.mark.parametrize('round_up', [True, False])
    @pytest.mark.parametrize('size,world_size', [(20, 1), (17, 4), (2, 5)])
    def test_length_is_what_is_iterated(self, mode, placement, round_up, size, world_size):
        for rank in range(world_size):
            sampler = _sampler(
                size, rank, world_size, mode=mode, placement=placement, round_up=round_up
            )
            assert len(list(sampler)) == len(sampler)

    def test_ranks_partition_the_epoch(self):
        streams = _world(4, size=18, num_repeats=3, round_up=False)
        whole = list(_sampler(18, num_repeats=3))
        assert streams[0] == whole[0:3] + whole[12:15] + whole[24:27] + whole[36:39] + whole[48:51]
        assert Counter(itertools.chain(*streams)) == Counter(whole)

    def test_replicas_share_a_rank_or_do_not(self):
        for placement, holders in (('rank', 1), ('spread', 3)):
            streams = _world(4, size=20, placement=placement)
            for source in range(20):
                assert sum(source in stream for stream in streams) == holders

    def test_v1_keeps_the_length_of_the_epoch(self):
        assert len(_sampler(24, num_repeats=4, mode='v1')) == 24
        assert len(_sampler(25, num_repeats=4, mode='v1')) == 28
        lengths = [len(s) for s in _world(2, size=25, num_repeats=4, mode='v1')]
        assert lengths == [16, 16]

    def test_v1_covers_the_data_set_in_each_pass(self):
        sampler = _sampler(24, num_repeats=4, mode='v1')
        for first in range(0, 24, 4):
            seen = Counter()
            for epoch in range(first, first + 4):
                sampler.set_epoch(epoch)
                seen.update(sampler)
            assert seen == dict.fromkeys(range(24), 4)

    @pytest.mark.parametrize('mode', ['full', 'v1'])
    def test_resume_gives_the_interrupted_epoch(self, mode):
        sampler = _sampler(30, mode=mode)
        epochs = []
        for epoch in range(4):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        assert len(set(map(tuple, epochs))) == 4
        resumed = _sampler(30, mode=mode)
        resumed.set_epoch(3)
        assert list(resumed) == epochs[3]

    def test_epoch_of_a_running_iteration_is_fixed(self):
        sampler = _sampler(30)
        expected = list(sampler)
        iterator = iter(sampler)
        sampler.set_epoch(1)
        assert list(iterator) == expected

    def test_partly_repeated(self):
        sampler = _sampler(
            8, num_repeats=2, mode='v1', shuffle=False, repeat_fraction=0.5, start_epoch=1
        )
        epochs = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        assert epochs == [
            [0, 1, 2, 3, 4, 5, 6, 7],
            [0, 1, 2, 2, 3, 4, 5, 5],
            [6, 7, 0, 0, 1, 2, 3, 3],
        ]
        sampler.set_epoch(3)  # another pass
        assert list(sampler) == epochs[1]
        assert len(sampler) == 8

    def test_start_epoch_in_full_mode(self):
        with pytest.raises(ValueError, match="start_epoch=1 .*mode='v1'"):
            _sampler(start_epoch=1)

    def test_num_repeats_above_the_size(self):
        assert list(_sampler(1, num_repeats=5, mode='v1')) == [0] * 5


class TestEndless:
    def test_passes_over_the_data(self):
        sampler = _sampler(8, cls=InfiniteGroupedRepeatAugSampler, num_repeats=2)
        assert len(sampler) == 8
        indices = _take(sampler, 48)
        assert indices[::2] == indices[1::2]
        passes = [indices[i : i + 16] for i in (0, 16, 32)]
        for one in passes:
            assert Counter(one) == dict.fromkeys(range(8), 2)
        assert len(set(map(tuple, passes))) == 3

    def test_ranks_share_the_groups(self):
        whole = _take(_sampler(8, cls=InfiniteGroupedRepeatAugSampler), 72)
        for rank in range(2):
            sampler = _sampler(8, rank, 2, InfiniteGroupedRepeatAugSampler)
            expected = [i for i in whole[::3][rank::2] for _ in range(3)]
            assert _take(sampler, 36) == expected

    def test_set_epoch_does_nothing(self):
        sampler = _sampler(8, cls=InfiniteGroupedRepeatAugSampler)
        before = _take(sampler, 50)
        sampler.set_epoch(3)
        assert _take(sampler, 50) == before

    def test_skip_is_absolute(self):
        sampler = _sampler(8, cls=InfiniteGroupedRepeatAugSampler)
        whole = _take(sampler, 100)
        for start in (10, 60, 0):
            sampler.skip(start)
            assert _take(sampler, 40) == whole[start : start + 40]
        with pytest.raises(ValueError, match='num_samples=-1'):
            sampler.skip(-1)


class TestConstruction:
    @pytest.mark.parametrize('cls', BOTH)
    def test_seed_is_agreed_on_if_none(self, cls):
        with patch(
            'lt_mm.datasets.samplers.repeat_aug.sync_random_seed', return_value=77
        ) as agreed:
            sampler = _sampler(20, cls=cls, seed=None)
        agreed.assert_called_once_with()
        assert _take(sampler, 60) == _take(_sampler(20, cls=cls, seed=77), 60)

    @pytest.mark.parametrize('cls', BOTH)
    def test_seed_zero_is_a_seed(self, cls):
        with patch('lt_mm.datasets.samplers.repeat_aug.sync_random_seed') as agreed:
            _sampler(cls=cls, seed=0)
        agreed.assert_not_called()

    @pytest.mark.parametrize('cls', BOTH)
    @pytest.mark.parametrize(
        'kwargs,message',
        [
            (dict(size=0), 'data set is empty'),
            (dict(num_repeats=1), 'no replicas to pair'),
            (dict(placement='node'), "'rank', 'spread'"),
            (dict(repeat_fraction=0), 'repeat_fraction=0 repeats nothing'),
        ],
    )
    def test_bad_arguments(self, cls, kwargs, message):
        with pytest.raises(ValueError, match=message):
            _sampler(cls=cls, **kwargs)

    def test_bad_mode(self):
        with pytest.raises(ValueError, match="'full', 'v1'"):
            _sampler(mode='half')


class TestLoaders:
    @pytest.mark.parametrize('mode', ['full', 'v1'])
    def test_order_does_not_depend_on_workers(self, mode):
        batches = []
        for num_workers in (0, 2):
            sampler = _sampler(22, num_repeats=3, mode=mode)
            sampler.set_epoch(2)
            loader = DataLoader(
                sampler.dataset, batch_size=6, sampler=sampler, num_workers=num_workers
            )
            batches.append([batch.tolist() for batch in loader])
            assert len(batches[-1]) == len(loader)
        assert batches[0] == batches[1]
        assert [*itertools.chain(*batches[0])] == list(sampler)
        for batch in batches[0]:
            _assert_whole_groups(batch, 3)

    def test_endless_in_workers(self):
        sampler = _sampler(5, cls=InfiniteGroupedRepeatAugSampler)
        loader = DataLoader(sampler.dataset, batch_size=6, sampler=sampler, num_workers=2)
        batches = [batch.tolist() for batch in itertools.islice(loader, 7)]
        assert [*itertools.chain(*batches)] == _take(sampler, 42)

    @pytest.mark.parametrize('mode', ['full', 'v1'])
    @pytest.mark.parametrize('world_size', [1, 2])
    def test_aspect_ratio_batches_hold_whole_groups(self, mode, world_size):
        for rank in range(world_size):
            sampler = _sampler(25, rank, world_size, mode=mode, num_repeats=3)
            batches = list(AspectRatioBatchSampler(sampler, batch_size=6))
            assert Counter([*itertools.chain(*batches)]) == Counter(sampler)
            upright = [{i % 3 == 0 for i in batch} for batch in batches]
            assert sum(len(kinds) > 1 for kinds in upright) <= 1  # Left over.
            for batch in batches:
                _assert_whole_groups(batch, 3)


class TestCheckTrainDataloader:
    @staticmethod
    def _loader(sampler, batch_size):
        return DataLoader(sampler.dataset, batch_size, sampler=sampler)

    @pytest.mark.parametrize('cls', BOTH)
    def test_batch_size(self, cls):
        sampler = _sampler(cls=cls, num_repeats=3)
        check_train_dataloader(self._loader(sampler, 6))
        with pytest.raises(ValueError, match='batch_size=8 .*6 or 9'):
            check_train_dataloader(self._loader(sampler, 8))

    def test_custom_batch_sampler(self):
        sampler = _sampler(num_repeats=3)
        for batch_size, fits in ((6, True), (4, False)):
            loader = DataLoader(
                sampler.dataset, batch_sampler=AspectRatioBatchSampler(sampler, batch_size)
            )
            if fits:
                check_train_dataloader(loader)
            else:
                with pytest.raises(ValueError, match='batch_size=4 .*3 or 6'):
                    check_train_dataloader(loader)

    def test_batches_that_are_regrouped_cut_partial_groups(self):
        sampler = _sampler(num_repeats=2, repeat_fraction=0.5)
        batches = AspectRatioBatchSampler(sampler, batch_size=2)
        loader = DataLoader(sampler.dataset, batch_sampler=batches)
        with pytest.raises(ValueError, match='AspectRatioBatchSampler.*None'):
            check_train_dataloader(loader)
        check_train_dataloader(self._loader(sampler, 2))

    def test_batch_size_for_each_data_set(self):
        sampler = _sampler(num_repeats=3)
        for sizes, fits in (([3, 6], True), ([3, 5], False)):
            loader = DataLoader(
                sampler.dataset,
                batch_sampler=MultiDataAspectRatioBatchSampler(sampler, sizes, num_datasets=2),
            )
            if fits:
                check_train_dataloader(loader)
            else:
                with pytest.raises(ValueError, match='batch_size=5 .*3 or 6'):
                    check_train_dataloader(loader)

    def test_others_pass(self):
        spread = _sampler(num_repeats=3, placement='spread')
        check_train_dataloader(self._loader(spread, 8))
        stock = DefaultSampler(_Images(20))
        check_train_dataloader(self._loader(stock, 7))
        check_train_dataloader(
            DataLoader(stock.dataset, batch_sampler=BatchSampler(stock, 7, False))
        )
        check_train_dataloader(DataLoader(_Images(3), batch_size=None))
        check_train_dataloader(DataLoader(_Images(3), batch_sampler=[[0, 1], [2]]))


class TestWithoutHead:
    """A sampler whose replicas nobody compares says so, once."""

    @pytest.mark.parametrize('cls', BOTH)
    def test_warning(self, cls):
        sampler = _sampler(cls=cls)
        with (
            patch('lt_mm.datasets.samplers.repeat_aug.comparing_heads.exist', return_value=False),
            patch('lt_mm.datasets.samplers.repeat_aug.warn') as warn,
        ):
            warn.assert_not_called()  # the model may be built after the loader
            for _ in range(2):
                _take(sampler, 3)
        (message,) = warn.call_args.args
        warn.assert_called_once()
        assert f'{cls.__name__} shows every image 3 times' in message
        assert "type='lt_mm.LossTransformHead'" in message

    @pytest.mark.parametrize('cls', BOTH)
    def test_with_a_head(self, cls):
        head = wrap_head(LinearClsHead(3, 4), rho=0)
        with patch('lt_mm.datasets.samplers.repeat_aug.warn') as warn:
            _take(_sampler(cls=cls), 3)
        assert head is not None  # it lives as long as the sampler is used
        warn.assert_not_called()

    def test_a_head_that_is_gone_does_not_count(self):
        before = len(comparing_heads._HEADS)
        head = wrap_head(LinearClsHead(3, 4))
        assert len(comparing_heads._HEADS) == before + 1
        del head
        gc.collect()
        assert len(comparing_heads._HEADS) <= before


class TestRegistry:
    @pytest.fixture(params=['mmdet', 'mmpretrain'])
    def default_scope(self, request):
        with DefaultScope.overwrite_default_scope(None):
            init_default_scope(request.param)
            yield

    @pytest.mark.usefixtures('default_scope')
    @pytest.mark.parametrize('cls', BOTH)
    @pytest.mark.parametrize('prefix', ['lt_mm.', ''])
    def test_found_from_the_stock_scopes(self, cls, prefix):
        sampler = DATA_SAMPLERS.build(
            dict(type=prefix + cls.__name__, num_repeats=2),
            default_args=dict(dataset=_Images(4), seed=3),
        )
        assert type(sampler) is cls
        assert len(_take(sampler, 8)) == 8
