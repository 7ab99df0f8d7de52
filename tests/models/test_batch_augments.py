"""Grouped batch augments: against the stock ones, and in a real classifier's step."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier, RandomBatchAugment
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.registry import BATCH_AUGMENTS, MODELS

from lt_mm.models.batch_augments import (
    Cutout,
    GroupedClsDataPreprocessor,
    GroupedCutMix,
    GroupedMixup,
)
from lt_mm.structures.errors import MissingRecordError
from tests.models.heads.head_data import cls_samples, total
from tests.paths import CONFIGS

CIFAR_CONFIGS = CONFIGS / 'cifar'
# Unequal groups, not contiguous; sources in order of appearance: 9, 4, 7, 2.
IDS = [9, 4, 9, 7, 4, 9, 2]
LABELS = [source % 3 for source in IDS]
GROUPED = 'lt_mm.GroupedClsDataPreprocessor'
MIXUP = dict(type='lt_mm.GroupedMixup', alpha=1.0)
CUTMIX = dict(type='lt_mm.GroupedCutMix', alpha=1.0)
CUTOUT = dict(type='lt_mm.Cutout', length=4)


@pytest.fixture(autouse=True)
def _scope_and_seed():
    init_default_scope('mmpretrain')
    np.random.seed(0)


def seeded(seed):
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch(ids=IDS, size=(8, 6)):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (len(ids), 3, *size), generator=generator)
    return dict(inputs=list(images.to(torch.uint8)), data_samples=cls_samples(ids))


def preprocessor(augments, probs=None, **options):
    options = dict(num_classes=3, mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0]) | options
    return MODELS.build(
        dict(type=GROUPED, batch_augments=dict(augments=augments, probs=probs), **options)
    )


def without_augments(ids=IDS):
    stock = ClsDataPreprocessor(num_classes=3, mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0])
    return stock(batch(ids), training=True)['inputs']


def one_hot(label):
    return torch.eye(3)[label]


# -- registries ------------------------------------------------------------------


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'lt_mm'])
def test_names_with_the_scope_resolve_from_any_scope(scope):
    init_default_scope(scope)
    assert isinstance(BATCH_AUGMENTS.build(dict(MIXUP)), GroupedMixup)
    assert isinstance(MODELS.build(dict(type=GROUPED)), GroupedClsDataPreprocessor)


def test_bare_names_resolve_in_the_scope_of_mmpretrain():
    built = RandomBatchAugment(
        [
            dict(type='GroupedMixup', alpha=0.2),
            dict(type='GroupedCutMix', alpha=1.0),
            dict(type='Cutout', length=2),
        ]
    ).augments
    assert [type(augment) for augment in built] == [GroupedMixup, GroupedCutMix, Cutout]
    assert isinstance(
        MODELS.build(dict(type='GroupedClsDataPreprocessor')), GroupedClsDataPreprocessor
    )


# -- values ----------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
    'name, options',
    [
        ('Mixup', dict(alpha=0.7)),
        ('CutMix', dict(alpha=1.0)),
        ('CutMix', dict(alpha=1.0, cutmix_minmax=[0.3, 0.8])),
        ('CutMix', dict(alpha=0.2, correct_lam=False)),
    ],
)
def test_groups_of_one_give_the_stock_result(name, options, seed):
    ids = [5, 3, 8, 1, 0]
    stock = ClsDataPreprocessor(
        num_classes=3, batch_augments=dict(augments=[dict(type=name, **options)], probs=[0.8])
    )
    grouped = preprocessor(
        [dict(type=f'lt_mm.Grouped{name}', **options)], [0.8], mean=None, std=None
    )
    seeded(seed)
    expected = stock(batch(ids), training=True)
    seeded(seed)
    found = grouped(batch(ids), training=True)
    assert torch.equal(found['inputs'], expected['inputs'])
    for mine, theirs in zip(found['data_samples'], expected['data_samples']):
        assert torch.equal(mine.gt_score, theirs.gt_score)


@pytest.mark.parametrize('name', ['Mixup', 'CutMix'])
def test_stock_augments_are_taken_for_the_grouped_ones(name):
    found = []
    for kind in (name, f'lt_mm.Grouped{name}'):
        augments = [dict(type=kind, alpha=0.7)]
        seeded(3)
        found.append(preprocessor(augments, [0.9])(batch(), training=True))
    assert torch.equal(found[0]['inputs'], found[1]['inputs'])
    samples = [each['data_samples'] for each in found]
    assert [sample.mixed_source_id for sample in samples[0]] == [
        sample.mixed_source_id for sample in samples[1]
    ]
    assert samples[0][0].mix_lambda == samples[1][0].mix_lambda < 1


def partner_rows(samples, ids=IDS):
    """Of every row the row it was mixed with, from the record and the rule."""
    rows = []
    for row, sample in enumerate(samples):
        replica = ids[:row].count(ids[row])
        others = [other for other, source in enumerate(ids) if source == sample.mixed_source_id]
        rows.append(others[replica % len(others)])
    return rows


def assert_replicas_were_treated_alike(samples):
    for source in set(IDS):
        own = [sample for sample in samples if sample.source_id == source]
        assert len({sample.mixed_source_id for sample in own}) == 1
        assert all(torch.equal(sample.gt_score, own[0].gt_score) for sample in own)
    assert len({sample.mix_lambda for sample in samples}) == 1


@pytest.mark.parametrize('seed', range(5))
def test_mixup_of_groups(seed):
    clean = without_augments().double()
    seeded(seed)
    found = preprocessor([MIXUP])(batch(), training=True)
    samples = found['data_samples']
    assert_replicas_were_treated_alike(samples)
    for row, (sample, other) in enumerate(zip(samples, partner_rows(samples))):
        lam = sample.mix_lambda
        torch.testing.assert_close(
            found['inputs'][row].double(),
            lam * clean[row] + (1 - lam) * clean[other],
            rtol=1e-5,
            atol=1e-5,
        )
        torch.testing.assert_close(
            sample.gt_score, lam * one_hot(LABELS[row]) + (1 - lam) * one_hot(LABELS[other])
        )
        assert sample.gt_label == LABELS[row]


@pytest.mark.parametrize('seed', range(5))
def test_cutmix_of_groups(seed):
    clean = without_augments()
    seeded(seed)
    found = preprocessor([CUTMIX])(batch(), training=True)
    samples = found['data_samples']
    assert_replicas_were_treated_alike(samples)
    boxes = set()
    for row, (sample, other) in enumerate(zip(samples, partner_rows(samples))):
        own = (found['inputs'][row] == clean[row]).all(dim=0)
        pasted = (found['inputs'][row] == clean[other]).all(dim=0)
        assert (own | pasted).all()
        lam = sample.mix_lambda
        torch.testing.assert_close(
            sample.gt_score, lam * one_hot(LABELS[row]) + (1 - lam) * one_hot(LABELS[other])
        )
        if other != row:
            boxes.add(tuple((~own).flatten().tolist()))
            # lambda is the real share of the image's own pixels.
            assert lam == pytest.approx(own.float().mean().item())
    assert len(boxes) <= 1


@pytest.mark.parametrize('augment', [MIXUP, CUTMIX])
def test_a_batch_of_one_source_stays_what_it_is(augment):
    ids = [4, 4, 4]
    found = preprocessor([augment])(batch(ids), training=True)
    torch.testing.assert_close(found['inputs'], without_augments(ids))
    for sample in found['data_samples']:
        torch.testing.assert_close(sample.gt_score, one_hot(1))
        assert sample.mixed_source_id == 4


@pytest.mark.parametrize(
    'options, length', [(dict(length=3), 3), (dict(ratio=0.5), 3), (dict(length=30), 30)]
)
def test_cutout_cuts_a_square_of_its_own_from_each_image(options, length):
    ids = list(range(40))
    clean = without_augments(ids)
    found = preprocessor([dict(type='lt_mm.Cutout', **options)])(batch(ids), training=True)
    masks = (found['inputs'] != clean).any(dim=1)
    assert (found['inputs'].permute(0, 2, 3, 1)[masks] == 0).all()
    for mask, sample in zip(masks, found['data_samples']):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        height, width = (int(v.max() - v.min()) + 1 for v in (rows, columns))
        assert mask.sum() == height * width  # a rectangle
        assert height <= length and width <= length
        if length < 6 and rows.min() > 0 and rows.max() < 7:
            assert height == length
        assert torch.equal(sample.gt_score, one_hot(sample.gt_label[0]))
        assert (sample.mixed_source_id, sample.mix_lambda) == (sample.source_id, 1.0)
    if length < 6:
        assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 15


def test_cutout_probability_and_the_stock_preprocessor():
    ids = list(range(200))
    clean = without_augments(ids)
    stock = ClsDataPreprocessor(
        num_classes=3,
        mean=[10.0, 20.0, 30.0],
        std=[2.0, 3.0, 4.0],
        batch_augments=dict(augments=[dict(type='lt_mm.Cutout', length=4, prob=0.3)]),
    )
    found = stock(batch(ids), training=True)
    share = (found['inputs'] != clean).flatten(1).any(dim=1).float().mean()
    assert 0.2 < share < 0.4
    assert torch.equal(found['data_samples'][7].gt_score, one_hot(1))


def test_probabilities_are_those_of_the_stock_choice():
    probs = [0.5, 0.2]
    augments = preprocessor([MIXUP, CUTOUT], probs)
    assert probs == [0.5, 0.2]  # the config's list is not written to
    picked = []
    for _ in range(300):
        samples = augments(batch([1, 2]), training=True)
        lam = samples['data_samples'][0].mix_lambda
        cut = (samples['inputs'] == 0).all(dim=1).any()
        picked.append('mixup' if lam < 1 else 'cutout' if cut else 'nothing')
    shares = [picked.count(name) / 300 for name in ('mixup', 'cutout', 'nothing')]
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.08)


def test_nothing_is_augmented_outside_training_or_without_augments():
    clean = without_augments()
    evaluated = preprocessor([MIXUP])(batch(), training=False)
    assert torch.equal(evaluated['inputs'], clean)
    assert 'mix_lambda' not in evaluated['data_samples'][0]
    plain = MODELS.build(dict(type=GROUPED, mean=[10.0, 20.0, 30.0], std=[2.0, 3.0, 4.0]))
    found = plain(batch(), training=True)
    assert torch.equal(found['inputs'], clean)
    assert 'gt_score' not in found['data_samples'][0]
    unlabelled = preprocessor([MIXUP])(dict(inputs=batch()['inputs']), training=True)
    assert torch.equal(unlabelled['inputs'], clean)


def test_augments_exchanged_by_a_hook_take_effect():
    """mmpretrain's SwitchRecipeHook assigns to ``batch_augments``."""
    data_preprocessor = preprocessor([CUTOUT])
    data_preprocessor.batch_augments = RandomBatchAugment([MIXUP])
    found = data_preprocessor(batch(), training=True)
    assert found['data_samples'][0].mix_lambda < 1
    data_preprocessor.batch_augments = RandomBatchAugment([dict(type='Mixup', alpha=1.0)])
    found = data_preprocessor(batch(), training=True)
    assert partner_rows(found['data_samples'])
    data_preprocessor.batch_augments = RandomBatchAugment([dict(type='ResizeMix', alpha=1.0)])
    with pytest.raises(TypeError, match='batch augment ResizeMix does not know'):
        data_preprocessor(batch(), training=True)


# -- errors ----------------------------------------------------------------------


@pytest.mark.parametrize('augment', [MIXUP, CUTMIX])
def test_the_stock_preprocessor_is_named_as_the_line_to_change(augment):
    stock = ClsDataPreprocessor(num_classes=3, batch_augments=dict(augments=[augment]))
    with pytest.raises(TypeError, match="data_preprocessor = dict\\(type='lt_mm.Grouped"):
        stock(batch(), training=True)


def test_other_stock_augments_are_refused_when_built():
    with pytest.raises(TypeError, match='ResizeMix does not know.*expected Mixup, CutMix'):
        preprocessor([CUTOUT, dict(type='ResizeMix', alpha=1.0)])


def test_samples_without_a_record():
    data = batch()
    for sample in data['data_samples']:
        del sample.source_id
    with pytest.raises(MissingRecordError, match="type='lt_mm.InvertiblePipeline'"):
        preprocessor([MIXUP])(data, training=True)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(), 'length is None and ratio is None'),
        (dict(length=4, ratio=0.5), 'length is 4'),
        (dict(length=0), 'length is 0'),
        (dict(length=2.5), 'length is 2.5'),
        (dict(ratio=1.5), 'ratio is 1.5'),
        (dict(length=4, prob=-1), 'prob is -1'),
    ],
)
def test_bad_arguments_of_cutout_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        Cutout(**options)


# -- the whole classifier ----------------------------------------------------------

SOFT_CE = dict(type='CrossEntropyLoss', use_soft=True)
LABEL_SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')


def classifier(augments, preprocessor_type=GROUPED, loss=SOFT_CE, wrap=True, **options):
    head = dict(type='LinearClsHead', num_classes=3, in_channels=16, loss=loss)
    if wrap:
        head = dict(type='lt_mm.LossTransformHead', head=head, **options)
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=2, stem_channels=2),
            neck=dict(type='GlobalAveragePooling'),
            head=head,
            train_cfg=dict(augments=augments),
            data_preprocessor=dict(
                type=preprocessor_type, num_classes=3, mean=[100.0] * 3, std=[50.0] * 3
            ),
        )
    )
    assert isinstance(model, ImageClassifier)
    return model


def train_step(model, ids=IDS, seed=0):
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    seeded(seed)
    return model.train_step(batch(ids, (32, 32)), optimizer)


@pytest.mark.parametrize('loss', [SOFT_CE, LABEL_SMOOTH, dict(type='CrossEntropyLoss')])
@pytest.mark.parametrize(
    'augments',
    [[MIXUP], [CUTMIX], [CUTOUT], [CUTOUT, CUTMIX, MIXUP]],
    ids=['mixup', 'cutmix', 'cutout', 'all'],
)
def test_train_step(augments, loss):
    stock = train_step(classifier(augments, loss=loss, wrap=False))
    model = classifier(augments, loss=loss)
    before = copy.deepcopy(model.state_dict())
    logged = train_step(model)
    assert logged['lt_num_paired'] == 5 and logged['loss_lt_cls'] > 0
    # MMEngine logs the classifier's own term 'loss' under the name of the sum.
    assert logged['loss'] == stock['loss']
    for name, value in model.state_dict().items():  # the step changed all weights
        assert value.isfinite().all() and (value != before[name]).any(), name


def test_rho_zero_is_the_stock_head_on_the_same_mixed_batch():
    expected = train_step(classifier([CUTMIX, MIXUP], wrap=False))
    model = classifier([CUTMIX, MIXUP], rho=0)
    found = train_step(model)
    assert found['loss'] == expected['loss'] and found['lt_kl_cls'] > 0
    stock = classifier([CUTMIX, MIXUP], wrap=False)
    train_step(stock)
    for name, value in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize('augments', [[MIXUP], [CUTMIX]], ids=['mixup', 'cutmix'])
def test_autocast(augments):
    model = classifier(augments)
    data = model.data_preprocessor(batch(size=(32, 32)), training=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(**data, mode='loss')
    assert losses['loss_lt_cls'].dtype == torch.float32
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('name', ['Mixup', 'CutMix'])
def test_stock_augments_are_refused_or_averaged(name):
    augments = [dict(type=name, alpha=1.0)]
    refusing = classifier(augments, 'ClsDataPreprocessor')
    with pytest.raises(ValueError, match='labels of the batch are mixed') as error:
        train_step(refusing)
    assert GROUPED in str(error.value) and "mixed_labels='average'" in str(error.value)
    logged = train_step(classifier(augments, 'ClsDataPreprocessor', mixed_labels='average'))
    assert logged['loss_lt_cls'] > 0 and logged['loss'].isfinite()


def test_stock_cutout_under_the_stock_preprocessor_is_not_mixing():
    logged = train_step(classifier([CUTOUT], 'ClsDataPreprocessor'))
    assert logged['loss_lt_cls'] > 0


@pytest.mark.parametrize('lt', ['', '_lt'])
@pytest.mark.parametrize(
    'name, names',
    [
        ('cutout', ['Cutout']),
        ('cutmix', ['CutMix', None]),
        ('mixup', ['Mixup']),
        ('all', ['Cutout', 'CutMix', 'Mixup']),
    ],
)
def test_configs(name, names, lt):
    """Plain and wrapped: the same augments, with the same probabilities."""
    cfg = Config.fromfile(str(CIFAR_CONFIGS / f'resnet20_cifar10_{name}{lt}.py'))
    cfg.model.backbone.depth = 8
    # As the Runner does it.
    model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    augments = model.data_preprocessor.batch_augments
    found = [augment and type(augment).__name__ for augment in augments.augments]
    grouped = dict(CutMix='GroupedCutMix', Mixup='GroupedMixup') if lt else {}
    assert found == [grouped.get(stock, stock) for stock in names]
    assert augments.probs == ([0.5, 0.5] if name == 'cutmix' else None)
    logged = train_step(model)
    assert ('loss_lt_cls' in logged) == bool(lt) and logged['loss'] > 0


def test_the_runner_trains_a_config(tmp_path):
    """Sampler, pipeline, preprocessor and head together, on images in folders."""
    rng = np.random.default_rng(0)
    for label in ('0', '1'):
        (tmp_path / 'train' / label).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / 'train' / label / f'{i}.png'), pixels)
    cfg = Config.fromfile(str(CIFAR_CONFIGS / 'resnet20_cifar10_all_lt.py'))
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[0].transforms.insert(0, dict(type='LoadImageFromFile'))
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path / 'train'), pipeline=pipeline
    )
    cfg.merge_from_dict(
        {
            'train_dataloader.batch_size': 8,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'model.backbone.depth': 8,
            'train_cfg.max_epochs': 1,
            'work_dir': str(tmp_path),
            'randomness': dict(seed=0),
            **{
                f'{split}_{part}': None
                for split in ('val', 'test')
                for part in ('dataloader', 'cfg', 'evaluator')
            },
        }
    )
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    paired, _ = scalars['train/lt_num_paired'].data
    losses, _ = scalars['train/loss_lt_cls'].data
    assert paired.tolist() == [8] * 4  # 8 images four times, in batches of 8
    assert (losses > 0).all()
