"""With ``strength='stock'`` the class term pulls as the stock class loss does."""

import pytest
import torch
from mmdet.registry import MODELS as DETECTION_MODELS
from mmpretrain.registry import MODELS
from torch import nn

from lt_mm.core.consistency import Modulation, bernoulli_consistency, categorical_consistency
from lt_mm.models.heads.class_losses import ClassLoss
from tests.models.heads import dense_data
from tests.models.heads.head_data import (
    build_cls_head,
    build_roi_head,
    cls_samples,
    det_sample,
    roi_head_config,
    roi_losses,
)

FOCAL_LOSSES = [
    (DETECTION_MODELS, dict(type='FocalLoss')),
    (DETECTION_MODELS, dict(type='FocalLoss', gamma=1.5, alpha=0.4, loss_weight=3.0)),
    (DETECTION_MODELS, dict(type='QualityFocalLoss', loss_weight=0.5)),
    (DETECTION_MODELS, dict(type='QualityFocalLoss', beta=1.5)),
    (MODELS, dict(type='FocalLoss', gamma=3.0, loss_weight=2.0)),
    (MODELS, dict(type='AsymmetricLoss', gamma_pos=1.0, clip=0.0, loss_weight=2.0)),
]


def pull(loss, logit, there):
    """Minus the gradient of the stock loss of one class, for each unit of target - p."""
    x = torch.tensor([[logit, -1.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[float(there), 0.0]], dtype=torch.float64)
    if type(loss).__name__ == 'QualityFocalLoss':  # label 2 of two classes is the background
        target = (torch.tensor([0 if there else 2]), torch.ones(1, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss(x, target, avg_factor=1.0), x)
    p = x.detach().sigmoid()
    return float(gradient[0, 0] / (p[0, 0] - float(there)))


@pytest.mark.parametrize('logit', [-6.0, -2.0, 0.0, 0.7, 4.0])
@pytest.mark.parametrize('registry, config', FOCAL_LOSSES)
def test_the_weight_is_the_gradient_of_the_stock_loss(registry, config, logit):
    """Expected under the mean, for a class that is there and for one that is not."""
    loss = registry.build(dict(config))
    mean = torch.tensor(logit, dtype=torch.float64).sigmoid()
    expected = mean * pull(loss, logit, True) + (1 - mean) * pull(loss, logit, False)
    read = ClassLoss.read(loss)
    found = read.weight * read.modulation.weights(mean)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    'loss, weight',
    [
        (
            DETECTION_MODELS.build(
                dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=2.0)
            ),
            2.0,
        ),
        (MODELS.build(dict(type='LabelSmoothLoss', label_smooth_val=0.1, loss_weight=0.5)), 0.5),
        (nn.BCEWithLogitsLoss(), 1.0),
        (None, 1.0),
    ],
    ids=['BCE', 'label smoothing', 'torch', 'none'],
)
def test_losses_without_a_modulation_have_that_of_quality_focal_loss(loss, weight):
    read = ClassLoss.read(loss)
    assert read.weight == weight
    assert (
        read.modulation
        == ClassLoss.read(DETECTION_MODELS.build(dict(type='QualityFocalLoss'))).modulation
    )


def class_terms(monkeypatch, head, run):
    """What the head compared, and the class term that it gave."""
    calls = []
    class_term = type(head).lt_class_term

    def record(self, logits, pairs, sigmoid, avg_factor=None, stands_for=1.0):
        calls.append((logits, pairs.compared_ids, avg_factor, float(stands_for)))
        return class_term(self, logits, pairs, sigmoid, avg_factor, stands_for)

    monkeypatch.setattr(type(head), 'lt_class_term', record)
    losses = run()
    # With 'gt_all' a second call tells the share between replicas.
    return losses, calls[0]


def samples():
    return [det_sample(3), det_sample(3, flip=True), det_sample(8), det_sample(8, flip=True)]


@pytest.mark.parametrize('pairing', ['gt', 'gt_mean', 'gt_all'])
@pytest.mark.parametrize(
    'kind, modulation',
    [
        ('RetinaNet', Modulation(2.0, 2.0, 0.25, 0.75)),
        ('GFL', Modulation(2.0, 2.0)),
        ('YOLOX', Modulation(2.0, 2.0)),
        ('SSD', None),
    ],
)
def test_dense_heads(monkeypatch, kind, modulation, pairing):
    head = dense_data.build(kind, strength='stock', pairing=pairing, rho_cls=1.0)
    weight = 1.0
    if modulation is not None:
        weight = head.loss_cls.loss_weight = 1.5
    losses, (logits, ids, avg_factor, stands_for) = class_terms(
        monkeypatch, head, lambda: dense_data.losses_of_inputs(kind, head, samples())
    )
    if pairing == 'gt_mean':
        return check_means_stand_for_all(ids, stands_for, losses)
    if modulation is None:
        term = categorical_consistency(logits, ids, avg_factor=avg_factor)
    else:
        term = bernoulli_consistency(logits, ids, avg_factor=avg_factor, modulation=modulation)
    torch.testing.assert_close(losses['loss_lt_cls'], weight * stands_for * term)
    # SimOTA gives each annotation one point here.
    assert stands_for == 1 if pairing == 'gt_all' or kind == 'YOLOX' else stands_for > 1
    losses['loss_lt_cls'].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def check_means_stand_for_all(ids, stands_for, losses):
    assert stands_for == pytest.approx(len(ids) / int((ids >= 0).sum()))
    assert losses['loss_lt_cls'] > 0


def test_a_roi_head_counts_the_rois_that_each_compared_one_stands_for(monkeypatch):
    config = roi_head_config()
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))
    head.bbox_head.loss_cls.loss_weight = 0.5
    losses, (logits, ids, avg_factor, stands_for) = class_terms(
        monkeypatch, head.bbox_head, lambda: roi_losses(head, samples())[0]
    )
    term = categorical_consistency(logits, ids, avg_factor=avg_factor)
    torch.testing.assert_close(losses['loss_lt_cls'], 0.5 * stands_for * term)
    assert stands_for > 1 and term > 0


@pytest.mark.parametrize('strength', ['stock', 'plain'])
def test_a_classifier(monkeypatch, strength):
    loss = dict(type='FocalLoss', gamma=1.5, loss_weight=2.0)
    head = dict(type='LinearClsHead', num_classes=4, in_channels=5, loss=loss)
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=head, strength=strength))
    feats = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),)
    losses, (logits, ids, _, stands_for) = class_terms(
        monkeypatch, head, lambda: head.loss(feats, cls_samples([1, 1, 2, 2]))
    )
    modulation = Modulation(1.5, 1.5, 0.25, 0.75) if strength == 'stock' else None
    weight = 2.0 if strength == 'stock' else 1.0
    term = bernoulli_consistency(logits, ids, modulation=modulation)
    assert stands_for == 1
    torch.testing.assert_close(losses['loss_lt_cls'], weight * term)
