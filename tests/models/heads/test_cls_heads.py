"""LossTransformHead on MMPretrain's classification heads: contracts with the stock."""

import copy
import io
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import DefaultOptimWrapperConstructor
from mmpretrain.models.heads import LinearClsHead
from torch import nn

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency
from lt_mm.models.heads import LossTransformHead
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError, UnsupportedHeadError
from tests.models.heads.head_data import build_cls_head, cls_samples, total

IDS = [7, 7, 2, 2, 7, 2]
CE = dict(type='CrossEntropyLoss')
SIGMOID_CE = dict(type='CrossEntropyLoss', use_sigmoid=True)
LINEAR = dict(type='LinearClsHead', num_classes=3, in_channels=5, loss=CE)
MULTI_LABEL = dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=5, loss=SIGMOID_CE)
HEADS = {
    'linear': LINEAR,
    'vit': dict(
        type='VisionTransformerClsHead', num_classes=3, in_channels=5, hidden_dim=4, loss=CE
    ),
    'stacked': dict(
        type='StackedLinearClsHead', num_classes=3, in_channels=5, mid_channels=[6], loss=CE
    ),
    'label smoothing': dict(LINEAR, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)),
    'sigmoid': dict(LINEAR, loss=SIGMOID_CE),
    'multi-label': MULTI_LABEL,
    'csra': dict(
        type='CSRAClsHead', num_classes=3, in_channels=5, num_heads=1, lam=0.1, loss=SIGMOID_CE
    ),
}


def wrapped(head, **options):
    options = {'strength': 'plain', **options}
    return build_cls_head(dict(type='lt_mm.LossTransformHead', head=head, **options))


def feats_for(head, count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 5, 2, 2) if head['type'] == 'CSRAClsHead' else (count, 5)
    feats = torch.randn(*shape, generator=generator, requires_grad=True)
    return feats, (feats,)


def samples_for(head, ids=IDS):
    samples = cls_samples(ids)
    if head['type'] in ('MultiLabelLinearClsHead', 'CSRAClsHead'):
        for sample in samples:
            sample.set_gt_score(torch.tensor([1.0, 0.0, 1.0]))
    if head['loss'].get('use_sigmoid') and head['type'] == 'LinearClsHead':
        for sample in samples:
            sample.set_gt_score(torch.eye(3)[int(sample.gt_label)])
    return samples


@pytest.mark.parametrize('name', HEADS)
def test_identity_of_the_stock_head(name):
    stock, head = build_cls_head(HEADS[name]), wrapped(HEADS[name])
    assert isinstance(head, type(stock))
    assert list(head.state_dict()) == list(stock.state_dict())
    assert [n for n, _ in head.named_parameters()] == [n for n, _ in stock.named_parameters()]
    assert [n for n, _ in head.named_modules()] == [n for n, _ in stock.named_modules()]
    for each in (head, stock):
        torch.manual_seed(0)
        each.init_weights()
    for value, other in zip(head.state_dict().values(), stock.state_dict().values()):
        assert torch.equal(value, other)
    head.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(head.state_dict(), strict=True)
    _, feats = feats_for(HEADS[name])
    for mine, theirs in zip(head.predict(feats), stock.predict(feats)):
        assert torch.equal(mine.pred_score, theirs.pred_score)


@pytest.mark.parametrize('name', HEADS)
def test_rho_zero_is_the_stock_loss_bit_for_bit(name):
    stock, head = build_cls_head(HEADS[name]), wrapped(HEADS[name], rho=0)
    samples = samples_for(HEADS[name])
    leaf, feats = feats_for(HEADS[name])
    expected = stock.loss(feats, samples)
    total(expected).backward()
    other_leaf, other_feats = feats_for(HEADS[name])
    losses = head.loss(other_feats, samples)
    total(losses).backward()
    assert torch.equal(losses['loss'], expected['loss'])
    assert torch.equal(other_leaf.grad, leaf.grad)
    for mine, theirs in zip(head.parameters(), stock.parameters()):
        assert torch.equal(mine.grad, theirs.grad)
    assert losses['loss_lt_cls'] == 0 and losses['lt_kl_cls'] > 0


@pytest.mark.parametrize('name', HEADS)
def test_loss_is_stock_plus_rho_times_the_term(name):
    rho = 2.5
    stock, head = build_cls_head(HEADS[name]), wrapped(HEADS[name], rho=rho)
    samples = samples_for(HEADS[name])
    leaf, feats = feats_for(HEADS[name])
    expected = stock.loss(feats, samples)
    logits = stock(feats)
    sigmoid = name in ('sigmoid', 'multi-label', 'csra')
    consistency = bernoulli_consistency if sigmoid else categorical_consistency
    term = consistency(logits, torch.tensor(IDS))
    (expected['loss'] + rho * term).backward()
    other_leaf, other_feats = feats_for(HEADS[name])
    losses = head.loss(other_feats, samples)
    total(losses).backward()
    assert torch.equal(losses['loss'], expected['loss'])
    torch.testing.assert_close(losses['loss_lt_cls'], rho * term)
    assert term > 1e-3
    torch.testing.assert_close(other_leaf.grad, leaf.grad)
    for mine, theirs in zip(head.parameters(), stock.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert losses['lt_num_paired'] == 6 and losses['lt_paired_share'] == 1


def test_the_stock_loss_is_computed_once():
    head = wrapped(LINEAR)
    calls = []
    head.fc.register_forward_hook(lambda *_: calls.append('fc'))
    head.loss_module.register_forward_hook(lambda *_: calls.append('loss'))
    head.loss(feats_for(LINEAR)[1], cls_samples(IDS))
    assert calls == ['fc', 'loss']


def test_options_reach_the_term():
    samples, ids = cls_samples(IDS), torch.tensor(IDS)
    leaf, feats = feats_for(LINEAR)
    head = wrapped(LINEAR, rho=9, rho_cls=0.5, temperature=2.0, detach_mean=True)
    losses = head.loss(feats, samples)
    expected = categorical_consistency(head(feats), ids, temperature=2.0, detach_mean=True)
    torch.testing.assert_close(losses['loss_lt_cls'], 0.5 * expected)
    (gradient,) = torch.autograd.grad(losses['loss_lt_cls'], leaf)
    (reference,) = torch.autograd.grad(0.5 * expected, leaf)
    torch.testing.assert_close(gradient, reference)
    as_sigmoid = wrapped(LINEAR, activation='sigmoid').loss(feats, samples)
    torch.testing.assert_close(as_sigmoid['lt_kl_cls'], bernoulli_consistency(head(feats), ids))


def test_schedule_follows_the_runner():
    head = wrapped(LINEAR, rho=dict(type='linear', start=0, end=4, finish=0.5))
    hub = MessageHub.get_instance('schedule')
    for iteration, rho in [(0, 0), (25, 2), (50, 4), (90, 4)]:
        hub.update_info('iter', iteration)
        hub.update_info('max_iters', 100)
        losses = head.loss(feats_for(LINEAR)[1], cls_samples(IDS))
        total(losses).backward()
        torch.testing.assert_close(losses['loss_lt_cls'], rho * losses['lt_kl_cls'])


def test_schedule_without_a_runner_is_an_error():
    head = wrapped(LINEAR, rho=dict(type='cosine'))
    MessageHub.get_instance('no runner')
    with pytest.raises(RuntimeError, match='no Runner tells'):
        head.loss(feats_for(LINEAR)[1], cls_samples(IDS))


@pytest.mark.parametrize('ids', [[3], [1, 2, 3], [5, 5, 6]])
def test_without_pairs_the_term_is_zero_with_a_graph(ids):
    head = wrapped(LINEAR)
    leaf, feats = feats_for(LINEAR, len(ids))
    losses = head.loss(feats, cls_samples(ids))
    losses['loss_lt_cls'].backward()
    assert leaf.grad.isfinite().all()
    unpaired = torch.tensor([ids.count(i) == 1 for i in ids])
    assert (leaf.grad[unpaired] == 0).all()
    assert losses['lt_num_paired'] == (~unpaired).sum()
    if unpaired.all():
        assert losses['loss_lt_cls'] == 0


@pytest.mark.parametrize(
    'copied',
    [
        copy.deepcopy,
        lambda head: pickle.loads(pickle.dumps(head)),
        lambda head: _saved_and_loaded(head),
    ],
    ids=['deepcopy', 'pickle', 'torch.save'],
)
def test_copies_are_wrapped_too(copied):
    head = wrapped(LINEAR, rho=3.0)
    twin = copied(head)
    assert type(twin) is type(head) and twin.lt_options.rho == 3.0
    with torch.no_grad():
        twin.fc.weight.mul_(2)
    _, feats = feats_for(LINEAR)
    mine, theirs = head.loss(feats, cls_samples(IDS)), twin.loss(feats, cls_samples(IDS))
    assert mine['loss'] != theirs['loss']  # parameters are not shared
    assert 'loss_lt_cls' in theirs


def _saved_and_loaded(head):
    file = io.BytesIO()
    torch.save(head, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def test_state_dict_loads_with_weights_only():
    file = io.BytesIO()
    torch.save(wrapped(LINEAR).state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    build_cls_head(LINEAR).load_state_dict(state, strict=True)


def test_exponential_moving_average():
    stock, head = nn.Sequential(build_cls_head(LINEAR)), nn.Sequential(wrapped(LINEAR))
    averages = [ExponentialMovingAverage(m, momentum=0.1) for m in (stock, head)]
    for model, average in zip((stock, head), averages):
        with torch.no_grad():
            model[0].fc.weight.mul_(2)
        average.update_parameters(model)
        average.update_parameters(model)
    expected, found = (average.state_dict() for average in averages)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_paramwise_cfg_sees_the_stock_names():

    def groups(head):
        model = nn.ModuleDict(dict(head=head))
        constructor = DefaultOptimWrapperConstructor(
            dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0, weight_decay=1e-4)),
            dict(
                custom_keys={'head.layers.0': dict(lr_mult=0.1)},
                bias_lr_mult=2.0,
                norm_decay_mult=0.0,
            ),
        )
        optimizer = constructor(model).optimizer
        names = {id(p): n for n, p in model.named_parameters()}
        return {
            names[id(p)]: group['lr'] for group in optimizer.param_groups for p in group['params']
        }

    stock = dict(HEADS['stacked'])
    expected = groups(build_cls_head(stock))
    assert groups(wrapped(stock)) == expected
    assert len(set(expected.values())) > 1


def test_torch_compile():
    head = wrapped(LINEAR)
    samples, (_, feats) = cls_samples(IDS), feats_for(LINEAR)
    compiled = torch.compile(lambda f: head.loss(f, samples), backend='eager')
    found, expected = compiled(feats), head.loss(feats, samples)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    total(found).backward()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_term_is_float32_under_autocast(dtype):
    head = wrapped(LINEAR)
    _, feats = feats_for(LINEAR)
    with torch.autocast('cpu', dtype=dtype):
        losses = head.loss(feats, cls_samples(IDS))
        logits = head(feats)
    assert logits.dtype == dtype and losses['loss_lt_cls'].dtype == torch.float32
    torch.testing.assert_close(
        losses['loss_lt_cls'], categorical_consistency(logits.float(), torch.tensor(IDS))
    )
    total(losses).backward()


def test_samples_without_a_record():
    samples = cls_samples(IDS)
    del samples[3].source_id
    with pytest.raises(MissingRecordError, match="type='lt_mm.InvertiblePipeline'"):
        wrapped(LINEAR).loss(feats_for(LINEAR)[1], samples)


def test_two_images_with_one_id():
    samples = cls_samples([4, 4])
    samples[0].set_metainfo(dict(img_path='a/0.png'))
    samples[1].set_metainfo(dict(img_path='b/0.png'))
    with pytest.raises(MissingRecordError, match='sample_idx_offset'):
        wrapped(LINEAR).loss(feats_for(LINEAR, 2)[1], samples)


@pytest.mark.parametrize(
    'ids, found',
    [
        ([1, 2, 3, 4], 'no two samples of a batch are replicas'),
        ([1, 1, 1, 2], 'are split between batches'),
    ],
)
def test_training_without_whole_groups_stops(ids, found):
    head, samples = wrapped(LINEAR), cls_samples(ids)
    _, feats = feats_for(LINEAR, 4)
    for _ in range(9):
        head.loss(feats, samples)
    with pytest.raises(UnpairedBatchError, match=found) as error:
        head.loss(feats, samples)
    assert 'GroupedRepeatAugSampler' in str(error.value)


def samples_of(ids, num_replicas, stand_ins=()):
    """Samples whose record tells what the sampler does."""
    samples = cls_samples(ids)
    for place, sample in enumerate(samples):
        sample.set_metainfo(dict(num_replicas=num_replicas, is_stand_in=place in stand_ins))
    return samples


@pytest.mark.parametrize(
    'ids, num_replicas, stand_ins, found',
    [
        ([1, 1, 2, 2], 2, (), None),
        ([1, 1, 1, 1], 2, (), None),
        ([1, 1, 1, 2], 2, (3,), None),  # the data set replaced an image
        ([1, 1, 1, 2], 2, (), 'are split between batches'),
        ([1, 1, 2], 2, (), 'are split between batches'),
        ([1, 1, 2], 2, (2,), 'are split between batches'),
        ([1, 1], 4, (), 'are split between batches: not all are whole groups of 4'),
        ([1, 2], 2, (), 'no two samples of a batch are replicas'),
    ],
)
def test_a_cut_group_stops_training_at_once(ids, num_replicas, stand_ins, found):
    head, (_, feats) = wrapped(LINEAR), feats_for(LINEAR, len(ids))
    samples = samples_of(ids, num_replicas, stand_ins)
    if found is None:
        for _ in range(20):
            assert head.loss(feats, samples)['lt_num_paired'] >= 3
    else:
        with pytest.raises(UnpairedBatchError, match=found) as error:
            head.loss(feats, samples)
        assert 'GroupedRepeatAugSampler' in str(error.value)
    # Without weight nothing is missed.
    assert wrapped(LINEAR, rho=0.0).loss(feats, samples)['loss_lt_cls'] == 0


def test_cut_groups_among_unrepeated_samples():
    head, (_, feats) = wrapped(LINEAR, allow_unrepeated=True), feats_for(LINEAR, 4)
    for _ in range(20):
        head.loss(feats, samples_of([1, 1, 2, 3], 2))
    with pytest.raises(UnpairedBatchError, match='in 10 training batches in a row'):
        for _ in range(10):  # a batch sampler that regroups samples
            head.loss(feats, samples_of([2, 1, 1, 3], 2))
    _, feats = feats_for(LINEAR, 3)
    with pytest.raises(UnpairedBatchError, match='are split between batches'):
        wrapped(LINEAR, allow_unrepeated=True).loss(feats, samples_of([1, 1, 2], 2))


def test_unrepeated_samples_by_intent():
    _, feats = feats_for(LINEAR, 4)
    head = wrapped(LINEAR, allow_unrepeated=True)
    for _ in range(20):
        losses = head.loss(feats, cls_samples([1, 1, 3, 2]))
    assert losses['lt_num_paired'] == 2 and losses['loss_lt_cls'] > 0
    with pytest.raises(UnpairedBatchError, match='no two samples'):
        for _ in range(10):
            head.loss(feats, cls_samples([1, 2, 3, 4]))


def test_repetition_may_start_with_rho():
    # Nothing pairs in the first half of training, and nothing is missed.
    schedule = dict(type='linear', start=0, end=1, begin=0.5, finish=0.6)
    head, (_, feats) = wrapped(LINEAR, rho=schedule), feats_for(LINEAR, 4)
    hub = MessageHub.get_current_instance()
    try:
        hub.update_info('max_iters', 60)
        for step in range(30):
            hub.update_info('iter', step)
            head.loss(feats, cls_samples([1, 2, 3, 4]))
        with pytest.raises(UnpairedBatchError, match='no two samples'):
            for step in range(31, 41):
                hub.update_info('iter', step)
                head.loss(feats, cls_samples([1, 2, 3, 4]))
    finally:
        for key in ('iter', 'max_iters'):
            hub.pop_info(key)


def test_single_incomplete_batches_do_not_stop_training():
    head, (_, feats) = wrapped(LINEAR), feats_for(LINEAR, 4)
    for step in range(40):
        ids = [1, 1, 1, 2] if step % 10 == 9 else [1, 1, 2, 2]
        head.loss(feats, cls_samples(ids))


def samples_with_scores(scores, ids=IDS, **metainfo):
    samples = cls_samples(ids)
    for sample, score in zip(samples, scores):
        sample.set_gt_score(score)
        sample.set_metainfo(metainfo)
    return samples


def soft_labels(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(6, 3, generator=generator).softmax(dim=1)


def alike(scores):
    """The scores of the first replica for all replicas of a source."""
    return torch.stack([scores[IDS.index(source)] for source in IDS])


def test_mixed_labels_are_refused():
    samples = samples_with_scores([torch.tensor([0.7, 0.3, 0.0])] * 6)
    with pytest.raises(ValueError, match='labels of the batch are mixed') as error:
        wrapped(LINEAR).loss(feats_for(LINEAR)[1], samples)
    for hint in (
        "data_preprocessor = dict(type='lt_mm.GroupedClsDataPreprocessor'",
        "dict(type='lt_mm.GroupedMixup'",
        "mixed_labels='average'",
    ):
        assert hint in str(error.value)
    # one-hot scores are labels in another form
    samples = samples_with_scores([torch.tensor([0.0, 1.0, 0.0])] * 6)
    losses = wrapped(LINEAR).loss(feats_for(LINEAR)[1], samples)
    total(losses).backward()
    assert losses['loss_lt_cls'] > 0


def test_one_hot_labels_that_differ_between_replicas_are_refused():
    """CutMix with a box as large as the image leaves one-hot labels."""
    samples = samples_with_scores(torch.eye(3)[[0, 0, 2, 2, 1, 2]])
    with pytest.raises(ValueError, match='labels of the batch are mixed'):
        wrapped(LINEAR).loss(feats_for(LINEAR)[1], samples)


@pytest.mark.parametrize('name', ['linear', 'label smoothing', 'sigmoid', 'multi-label'])
def test_average_trains_replicas_on_the_mean_label(name):
    scores, source_ids = soft_labels(), torch.tensor(IDS)
    mean = torch.stack([scores[source_ids == source].mean(dim=0) for source in IDS])
    stock = build_cls_head(HEADS[name])
    leaf, feats = feats_for(HEADS[name])
    expected = stock.loss(feats, samples_with_scores(mean))['loss']
    expected.backward()
    head = wrapped(HEADS[name], mixed_labels='average', rho=0)
    other_leaf, other_feats = feats_for(HEADS[name])
    samples = samples_with_scores(scores)
    losses = head.loss(other_feats, samples)
    total(losses).backward()
    torch.testing.assert_close(losses['loss'], expected)
    torch.testing.assert_close(other_leaf.grad, leaf.grad)
    assert abs(expected - stock.loss(feats, samples_with_scores(scores))['loss']) > 1e-4
    for sample, label in zip(samples, mean):
        torch.testing.assert_close(sample.gt_score, label)


def test_average_leaves_labels_that_nobody_mixed():
    scores = torch.eye(3)[[1, 1, 2, 2, 1, 2]]
    head, stock = wrapped(LINEAR, mixed_labels='average', rho=0), build_cls_head(LINEAR)
    _, feats = feats_for(LINEAR)
    losses = head.loss(feats, samples_with_scores(scores))
    total(losses).backward()
    assert torch.equal(losses['loss'], stock.loss(feats, samples_with_scores(scores))['loss'])


@pytest.mark.parametrize('mixed_labels', ['refuse', 'average'])
def test_labels_that_a_grouped_augment_mixed(mixed_labels):
    head, stock = wrapped(LINEAR, mixed_labels=mixed_labels), build_cls_head(LINEAR)
    scores = alike(soft_labels())
    leaf, feats = feats_for(LINEAR)
    losses = head.loss(feats, samples_with_scores(scores, mix_lambda=0.3))
    total(losses).backward()
    assert torch.equal(losses['loss'], stock.loss(feats, samples_with_scores(scores))['loss'])
    # The groups are still the sources.
    torch.testing.assert_close(
        losses['lt_kl_cls'], categorical_consistency(head(feats), torch.tensor(IDS))
    )
    assert losses['lt_num_paired'] == 6 and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize('mixed_labels', ['refuse', 'average'])
def test_a_grouped_augment_that_gives_replicas_different_labels(mixed_labels):
    head = wrapped(LINEAR, mixed_labels=mixed_labels)
    with pytest.raises(ValueError, match='different labels .* after a grouped'):
        head.loss(feats_for(LINEAR)[1], samples_with_scores(soft_labels(), mix_lambda=0.3))


def test_multi_label_targets_are_not_mixed_labels():
    targets = alike(
        torch.tensor(
            [
                [1.0, 1.0, 0.0],
                [0.0, 0.0, 0.0],
                [1.0, 1.0, 1.0],
                [0.0, 1.0, 1.0],
                [0.0, 0.0, 1.0],
                [1.0, 0.0, 0.0],
            ]
        )
    )
    head = wrapped(MULTI_LABEL)
    losses = head.loss(feats_for(MULTI_LABEL)[1], samples_with_scores(targets))
    total(losses).backward()
    assert losses['loss_lt_cls'] > 0
    targets[4, 0] = 0.5  # the third replica of the first source
    with pytest.raises(ValueError, match='labels of the batch are mixed'):
        head.loss(feats_for(MULTI_LABEL)[1], samples_with_scores(targets))


def test_labels_are_not_looked_at_where_they_cannot_be_mixed(monkeypatch):
    """Looking makes the host wait for the device."""

    def look(*args):
        raise AssertionError('the labels were compared')

    monkeypatch.setattr('lt_mm.models.heads.families.cls_head.replicas_agree', look)
    head, (_, feats) = wrapped(LINEAR), feats_for(LINEAR)
    one_hot = torch.eye(3)[[1, 1, 2, 2, 1, 2]]
    for samples in (cls_samples(IDS), samples_with_scores(one_hot, mix_lambda=1.0)):
        total(head.loss(feats, samples)).backward(retain_graph=True)
    average = wrapped(LINEAR, mixed_labels='average')
    total(average.loss(feats, samples_with_scores(soft_labels()))).backward()


class OwnGetLoss(LinearClsHead):
    def _get_loss(self, cls_score, data_samples, **kwargs):
        return super()._get_loss(2 * cls_score, data_samples, **kwargs)


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(type='SwAVHead', loss=dict(type='SwAVLoss', feat_dim=4)), 'SwAVHead.*expected'),
        (dict(LINEAR, type='ArcFaceClsHead'), 'ArcFaceClsHead.*expected'),
        (dict(LINEAR, type=OwnGetLoss), 'OwnGetLoss has a _get_loss.*expected'),
    ],
)
def test_unsupported_heads(config, message):
    with pytest.raises(UnsupportedHeadError, match=message):
        wrapped(config)


class LossOfItsOwn(LinearClsHead):
    def loss(self, feats, data_samples, **kwargs):
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=self.loss_module(self(feats), labels))


class TwoPredictions(LinearClsHead):
    def forward(self, feats):
        return [super().forward(feats)] * 2


@pytest.mark.parametrize(
    'kind, message',
    [
        (LossOfItsOwn, 'LossOfItsOwn.* without _get_loss'),
        (TwoPredictions, r'TwoPredictions.* predicts list; .* logits of shape \(N, C\)'),
    ],
)
def test_heads_that_are_refused_at_the_first_step(kind, message):
    head = wrapped(dict(LINEAR, type=kind))
    with pytest.raises(UnsupportedHeadError, match=message):
        head.loss(feats_for(LINEAR)[1], cls_samples(IDS))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(rho=-1), '-1'),
        (dict(rho='high'), 'high'),
        (dict(pairing='iou!'), 'iou!'),
        (dict(temperature=0), 'temperature is 0'),
        (dict(activation='tanh'), 'tanh'),
        (dict(min_visibility=2), 'min_visibility is 2'),
        (dict(rho=dict(type='step')), 'step'),
    ],
)
def test_bad_options_name_the_value(options, message):
    with pytest.raises(ValueError, match=message):
        wrapped(LINEAR, **options)


def test_a_built_head_can_be_wrapped():
    stock = build_cls_head(LINEAR)
    head = LossTransformHead(stock)
    assert head is stock and 'loss_lt_cls' in head.loss(feats_for(LINEAR)[1], cls_samples(IDS))
    assert type(build_cls_head(LINEAR)) is LinearClsHead  # nobody else is touched


def test_config_dicts_and_found_by_bare_name():
    config = ConfigDict(type='LossTransformHead', head=LINEAR)
    assert 'loss_lt_cls' in build_cls_head(config).loss(feats_for(LINEAR)[1], cls_samples(IDS))
