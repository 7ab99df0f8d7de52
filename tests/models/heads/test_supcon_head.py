"""SupConHead: the paper's formula, who gets gradient, and prediction as stock."""

import math
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from lt_mm.structures.errors import UnsupportedHeadError

CONFIG = dict(
    type='lt_mm.SupConHead',
    num_classes=3,
    in_channels=6,
    projection_channels=4,
    loss=dict(type='CrossEntropyLoss'),
)


@pytest.fixture(autouse=True)
def _library():
    pytest.importorskip('pytorch_metric_learning', reason="needs the extra 'baselines'")


def build(**options):
    init_default_scope('mmpretrain')
    head = MODELS.build({**CONFIG, **options})
    head.init_weights()
    return head


def samples(labels):
    return [DataSample().set_gt_label(label) for label in labels]


def naive_supcon(embeddings, labels, temperature):
    """Equation 2 of Khosla et al., one anchor and one positive after the other.

    The mean is over the anchors that have a positive.
    """
    z = [row / math.sqrt(sum(row**2)) for row in np.asarray(embeddings, np.float64)]
    terms = []
    for i, label in enumerate(labels):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == label]
        denominator = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
        logs = [math.log(math.exp(z[i] @ z[p] / temperature) / denominator) for p in positives]
        if positives:
            terms.append(-sum(logs) / len(positives))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    'labels',
    [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 0, 1, 1],
        [2, 0, 2, 1, 0, 0],
        [0, 0, 1, 2, 0, 1],  # the 2 has no positive
    ],
)
@pytest.mark.parametrize('temperature', [0.1, 0.5])
def test_values_against_the_formula(labels, temperature):
    head = build(temperature=temperature, supcon_weight=0.7)
    features = torch.randn(6, 6)
    losses = head.loss((features,), samples(labels))
    assert set(losses) == {'loss_supcon', 'loss_cls'}
    unit = features / features.square().sum(dim=1, keepdim=True).sqrt()
    embeddings = head.projection(unit).detach().numpy()
    expected = 0.7 * naive_supcon(embeddings, labels, temperature)
    assert losses['loss_supcon'].item() == pytest.approx(expected, rel=1e-5)
    log_probs = head.fc(unit).double().log_softmax(dim=1).detach().numpy()
    expected = -np.mean([log_probs[i, label] for i, label in enumerate(labels)])
    assert losses['loss_cls'].item() == pytest.approx(expected, rel=1e-5)


def gradients(head, loss, features):
    head.zero_grad()
    features.grad = None
    loss.backward()
    touched = {name for name, p in head.named_parameters() if p.grad is not None}
    return touched, features.grad


def test_the_classifier_passes_no_gradient_back():
    head = build()
    features = torch.randn(6, 6, requires_grad=True)
    losses = head.loss((features,), samples([0, 0, 1, 1, 2, 2]))
    touched, to_backbone = gradients(head, losses['loss_cls'], features)
    assert touched == {'fc.weight', 'fc.bias'} and to_backbone is None
    touched, to_backbone = gradients(head, losses['loss_supcon'], features)
    assert touched == {f'projection.{i}.{kind}' for i in (0, 2) for kind in ('weight', 'bias')}
    assert to_backbone.abs().sum() > 0


def test_projection_is_initialised_by_its_own_rule():
    """LinearClsHead's rule, a standard deviation of 0.01, is for the classifier."""
    head = build(in_channels=64, hidden_channels=256)
    assert float(head.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    first, _, last = head.projection
    assert first.weight.shape == (256, 64) and last.weight.shape == (4, 256)
    assert float(first.weight.detach().std()) == pytest.approx((2 / 256) ** 0.5, rel=0.1)


@pytest.mark.parametrize('labels', [[0, 1, 2], [1, 1, 1]])
def test_batches_without_a_pair_or_without_a_contrast_give_zero_with_a_graph(labels):
    head = build()
    features = torch.randn(3, 6, requires_grad=True)
    losses = head.loss((features,), samples(labels))
    assert losses['loss_supcon'].item() == 0
    _, to_backbone = gradients(head, losses['loss_supcon'], features)
    assert torch.equal(to_backbone, torch.zeros(3, 6))


def test_prediction_is_that_of_the_stock_head_on_unit_features():
    head = build(cal_acc=True)
    stock = MODELS.build(dict(type='LinearClsHead', num_classes=3, in_channels=6, cal_acc=True))
    state = {
        name: value
        for name, value in head.state_dict().items()
        if not name.startswith('projection.')
    }
    stock.load_state_dict(state, strict=True)
    feats = torch.randn(5, 6)
    unit = torch.nn.functional.normalize(feats, dim=1)
    for mine, theirs in zip(
        head.predict((7 * feats,), samples([0] * 5)), stock.predict((unit,), samples([0] * 5))
    ):
        torch.testing.assert_close(mine.pred_score, theirs.pred_score)
        assert torch.equal(mine.pred_label, theirs.pred_label)
    mine = head.loss((feats,), samples([0, 1, 2, 0, 1]))
    theirs = stock.loss((unit,), samples([0, 1, 2, 0, 1]))
    assert mine['loss_cls'] == theirs['loss']
    assert mine['accuracy_top-1'] == theirs['accuracy_top-1']


def test_a_stock_classifier_trains_with_it():
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='lt_mm.CifarResNet', depth=8),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(CONFIG, in_channels=64),
        )
    )
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    labels = [0, 0, 1, 1, 2, 2]
    images = torch.randn(3, 3, 16, 16).repeat_interleave(2, dim=0)
    images = images + 0.1 * torch.randn_like(images)
    history = []
    for _ in range(25):
        losses = model(images, samples(labels), mode='loss')
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name, share in (('loss_supcon', 0.5), ('loss_cls', 0.75)):
        assert history[-1][name] < share * history[0][name]
    assert model(images).argmax(dim=1).tolist() == labels


def test_mixed_labels_are_refused():
    mixed = [DataSample().set_gt_label(0).set_gt_score(torch.tensor([0.5, 0.5, 0.0]))] * 2
    with pytest.raises(ValueError, match='gt_score'):
        build().loss((torch.randn(2, 6),), mixed)


def test_the_consistency_term_on_it_is_refused():
    """It would act on detached features and train nothing but the classifier."""
    head = build(type='lt_mm.LossTransformHead', head=CONFIG)
    batch = samples([0, 0])
    for sample in batch:
        sample.set_metainfo(dict(source_id=1, source_shape=(8, 8)))
    with pytest.raises(UnsupportedHeadError, match='SupConHead'):
        head.loss((torch.randn(2, 6),), batch)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_metric_learning.losses', None)
    with pytest.raises(ImportError, match=r"pip install 'lt_mm\[baselines\]'"):
        build()
