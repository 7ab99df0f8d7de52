"""The objectness term of YOLOX and YOLOv3: its weight, its strength, its targets."""

import copy

import pytest
import torch

from lt_mm.apis import term_gradients
from lt_mm.models.memory import present_epoch
from tests import reference_losses as twin
from tests.models.heads import dense_data
from tests.models.heads.head_data import det_sample
from tests.models.heads.test_memory import EPOCHS, MOMENTUM, Spy, epoch  # noqa: F401
from tests.models.heads.test_unlabelled import IOU, UNLABELLED, batch, copies
from tests.models.heads.zoo_kinds import KINDS

WEIGHT = 2.5
LOSS = dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='sum', loss_weight=WEIGHT)


def yolox(monkeypatch, samples, loss=None, **options):
    """Losses, leaves and gathered columns of a wrapped YOLOX head."""
    if loss is not None:
        config = dict(dense_data.HEADS['YOLOX'], loss_obj=loss)
        monkeypatch.setitem(dense_data.HEADS, 'YOLOX', config)
    head = dense_data.build('YOLOX', **options)
    spy = Spy(head)
    outputs, _ = dense_data.made_outputs('YOLOX', head, len(samples))
    return dense_data.losses_of('YOLOX', head, outputs, samples), outputs[2], spy


def pair():
    return [det_sample(3), det_sample(3, flip=True)]


def gradients_of(term, leaves):
    return torch.autograd.grad(term, leaves, retain_graph=True, materialize_grads=True)


def test_its_own_rho(monkeypatch):
    """It weighs this term alone, and `rho` does where it is not given."""
    reference, leaves, _ = yolox(monkeypatch, pair(), rho=2.0)
    assert reference['lt_kl_obj'] > 1e-4
    torch.testing.assert_close(reference['loss_lt_obj'], 2 * reference['lt_kl_obj'])
    changed, _, _ = yolox(monkeypatch, pair(), rho=2.0, rho_obj=0.5)
    torch.testing.assert_close(changed['loss_lt_obj'], reference['loss_lt_obj'] / 4)
    for key in ('loss_lt_cls', 'loss_lt_bbox', 'loss_obj', 'lt_kl_obj', 'lt_num_paired'):
        assert torch.equal(changed[key], reference[key]), key
    without, _, _ = yolox(monkeypatch, pair(), rho=2.0, rho_obj=0.0)
    assert without['loss_lt_obj'] == 0 and not without['loss_lt_obj'].requires_grad
    assert any(gradient.any() for gradient in gradients_of(reference['loss_lt_obj'], leaves))


@pytest.mark.parametrize('activation', ['auto', 'softmax'])
def test_it_is_a_bernoulli_whatever_the_classes_are(monkeypatch, activation):
    losses, leaves, spy = yolox(monkeypatch, pair(), rho=1.0, activation=activation)
    columns = spy.columns
    instances = list(map(tuple, columns['instances'].tolist()))
    images = columns['images'].tolist()
    groups = twin.across_replicas(instances, images, columns['may_pair'].tolist())
    groups = twin.resort(groups, images, columns['distances'].tolist())
    expected = twin.bernoulli(columns['objectness'], groups, avg_factor=spy.avg_factor)
    torch.testing.assert_close(losses['loss_lt_obj'].double(), expected, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(
        gradients_of(losses['loss_lt_obj'], leaves), gradients_of(expected, leaves)
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_it_is_as_strong_as_the_stock_loss(monkeypatch):
    """Each paired prediction stands for all positives of its annotation in its replica."""
    plain, plain_leaves, spy = yolox(monkeypatch, pair(), rho=1.0, loss=LOSS)
    stock, leaves, _ = yolox(monkeypatch, pair(), rho=1.0, loss=LOSS, strength='stock')
    places = zip(spy.columns['instances'].tolist(), spy.columns['images'].tolist())
    places = [(*instance, image) for instance, image in places]
    # In these samples each annotation has one positive, as SimOTA assigns them.
    assert len(set(places)) == len(places)
    torch.testing.assert_close(stock['loss_lt_obj'], WEIGHT * plain['loss_lt_obj'])
    for mine, theirs in zip(
        gradients_of(stock['loss_lt_obj'], leaves), gradients_of(plain['loss_lt_obj'], plain_leaves)
    ):
        torch.testing.assert_close(mine, WEIGHT * theirs)


def test_heads_without_a_loss_of_it_have_no_such_term():
    for kind in ('ATSS', 'FCOS', 'RTMDet'):
        head = dense_data.build(kind, rho=1.0)
        outputs, _ = dense_data.made_outputs(kind, head, 2)
        losses = dense_data.losses_of(kind, head, outputs, pair())
        assert not [key for key in losses if key.endswith('_obj')]


def test_mirrored_predictions_of_mirrored_replicas_cost_nothing():
    head = dense_data.build('YOLOX', rho=1.0)
    outputs, _ = dense_data.made_outputs('YOLOX', head, 2)
    mirrored = dense_data.mirrored('YOLOX', head, outputs)
    assert dense_data.losses_of('YOLOX', head, mirrored, pair())['loss_lt_obj'] < 1e-6
    assert dense_data.losses_of('YOLOX', head, outputs, pair())['loss_lt_obj'] > 1e-4
    kind = KINDS['YOLOv3']
    head = kind.build(rho=1.0)
    outputs, _ = kind.outputs(head, 2)
    assert kind.losses(head, kind.mirrored(head, outputs), pair())['loss_lt_obj'] < 1e-6
    assert kind.losses(head, outputs, pair())['loss_lt_obj'] > 1e-4


def test_a_memory_keeps_it(epoch):  # noqa: F811
    """Against a dictionary of running means, which are stored in float16."""
    head = dense_data.build('YOLOX', rho=1.0, memory=dict(momentum=MOMENTUM))
    spy, means, compared = Spy(head), {}, 0
    for number, samples in enumerate(EPOCHS):
        epoch(number)
        assert present_epoch() == number
        outputs, _ = dense_data.made_outputs('YOLOX', head, len(samples), seed=number)
        losses = dense_data.losses_of('YOLOX', head, outputs, copy.deepcopy(samples))
        columns, nearest = spy.columns, {}
        for row, may in enumerate(columns['may_pair'].tolist()):
            key = (*columns['instances'][row].tolist(), int(columns['images'][row]))
            distance = float(columns['distances'][row])
            if may and (key not in nearest or distance < nearest[key][0]):
                nearest[key] = distance, row
        present = {}
        for (*instance, _), (_, row) in nearest.items():
            own = columns['objectness'][row].detach().double().sigmoid()
            present.setdefault(tuple(instance), []).append(own)
        expected = 0.0
        for instance, own in present.items():
            mean = sum(own) / len(own)
            stored = means.get(instance)
            joined = mean
            if stored is not None:  # as one replica more
                compared += len(own)
                joined = head_joined(stored, own)
            elif len(own) == 1:
                joined = None
            for each in own if joined is not None else []:
                expected += float(divergence(joined, each))
            moved = mean if stored is None else MOMENTUM * stored + (1 - MOMENTUM) * mean
            means[instance] = moved.half().double()
        found = losses['lt_kl_obj'] * spy.avg_factor
        torch.testing.assert_close(float(found), expected, rtol=1e-3, atol=1e-6)
        losses['loss_lt_obj'].backward()
    assert compared > 4


def head_joined(stored, own):
    """The mean of what was seen before and of the present predictions."""
    return (stored + sum(own)) / (1 + len(own)) if len(own) > 1 else stored


def divergence(mean, own):
    return (mean * (mean / own).log() + (1 - mean) * ((1 - mean) / (1 - own)).log()).sum()


@pytest.mark.parametrize('threshold', [0.0, 0.65])
def test_a_weak_copy_gives_its_target(threshold):
    """The sharpened probability of the weak copy, where its class is confident enough."""
    options = dict(temperature=0.4, threshold=threshold)
    head = dense_data.build('YOLOX', rho=1.0, weak_target=options)
    spy = Spy(head)
    outputs, _ = dense_data.made_outputs('YOLOX', head, 6)
    losses = dense_data.losses_of('YOLOX', head, outputs, copies(weak=1))
    columns = spy.columns
    instances = list(map(tuple, columns['instances'].tolist()))
    images = columns['images'].tolist()
    groups = twin.across_replicas(instances, images, columns['may_pair'].tolist())
    groups = twin.resort(groups, images, columns['distances'].tolist())
    logits, weak = columns['objectness'][:, 0], columns['weak'].tolist()
    expected, unsure = torch.zeros((), dtype=torch.float64), 0
    for row, group in enumerate(groups):
        targets = [i for i, other in enumerate(groups) if other == group >= 0 and weak[i]]
        if weak[row] or not targets:
            continue
        if columns['logits'][targets[0]].sigmoid().max() < threshold:
            unsure += 1
            continue
        target = (logits[targets[0]].detach().double() / options['temperature']).sigmoid()
        expected = expected + divergence(target, logits[row].double().sigmoid())
    expected = expected / spy.avg_factor
    assert expected > 1e-3 and (unsure > 0) == (threshold > 0)
    torch.testing.assert_close(losses['loss_lt_obj'].double(), expected, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(
        gradients_of(losses['loss_lt_obj'], outputs[2]), gradients_of(expected, outputs[2])
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_unlabelled_images_have_it():
    options = dict(IOU, score_threshold=dense_data.score_threshold('YOLOX'))
    head = dense_data.build('YOLOX', rho=1.0, **options)
    outputs, _ = dense_data.made_outputs('YOLOX', head, 6)
    losses = dense_data.losses_of('YOLOX', head, outputs, batch())
    assert losses['lt_num_unlabelled_paired'] > 0 and losses['loss_lt_obj'] > 1e-4
    reached = sum(
        each.abs().amax(dim=(1, 2, 3)) for each in gradients_of(losses['loss_lt_obj'], outputs[2])
    )
    assert [image for image, most in enumerate(reached) if most > 0] == UNLABELLED


@pytest.mark.parametrize('kind', ['YOLOX', 'YOLOv3'])
def test_it_is_known_as_a_term(kind):
    """Where stock losses and terms are told apart by their names."""
    if kind == 'YOLOX':
        head = dense_data.build(kind, rho=1.0)
        losses = dense_data.losses_of_inputs(kind, head, pair())
    else:
        head = KINDS[kind].build(rho=1.0)
        losses = KINDS[kind].losses_of_inputs(head, pair())
    added = {key for key in losses if key.startswith('loss_lt_')}
    assert added == {'loss_lt_cls', 'loss_lt_bbox', 'loss_lt_obj'}
    assert {key for key in losses if 'loss' in key and term_gradients._TERM.search(key)} == added
    stock = [key for key in term_gradients._stock_keys('loss_lt_obj') if key in losses]
    assert stock == ['loss_obj' if kind == 'YOLOX' else 'loss_conf']
