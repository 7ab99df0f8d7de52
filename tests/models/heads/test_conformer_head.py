"""LossTransformHead on ConformerHead, whose stock loss trains two branches, each by itself."""

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from tests.engine.loops.steps import assert_joint
from tests.models.heads.head_data import build_cls_head, cls_samples, total

CONFIG = dict(
    type='ConformerHead',
    num_classes=3,
    in_channels=[5, 4],
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original', loss_weight=0.5),
)
IDS = [7, 7, 2, 2, 7, 2]


def wrapped(**options):
    return build_cls_head(dict(type='lt_mm.LossTransformHead', head=CONFIG, **options))


def made_feats(seed=0):
    """The leaves, and the features as the backbone gives them."""
    generator = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(6, width, generator=generator, requires_grad=True) for width in (5, 4)]
    return leaves, (list(leaves),)


def naive_term(scores, ids):
    """(1 / N) of the KL of each sum of logits to the mean of its source, in float64."""
    p = sum(score.double() for score in scores).softmax(dim=1)
    value = 0.0
    for row, source in enumerate(ids):
        own = [p[other] for other, same in enumerate(ids) if same == source]
        mean = sum(own) / len(own)
        value = value + (mean * (mean / p[row]).log()).sum()
    return value / len(ids)


def test_losses_gradients_and_predictions_are_the_stock_ones():
    stock, head = build_cls_head(CONFIG), wrapped(rho=0.0)
    assert isinstance(head, type(stock))
    assert list(head.state_dict()) == list(stock.state_dict())
    (mine, feats), (theirs, other_feats) = made_feats(), made_feats()
    losses, expected = (
        each.loss(f, cls_samples(IDS)) for each, f in zip((head, stock), (feats, other_feats))
    )
    assert torch.equal(losses['loss'], expected['loss'])
    total(losses).backward()
    total(expected).backward()
    for own, other in zip([*mine, *head.parameters()], [*theirs, *stock.parameters()]):
        assert torch.equal(own.grad, other.grad) and other.grad.any()
    assert losses['loss_lt_cls'] == 0 and losses['lt_kl_cls'] > 0
    for own, other in zip(head.predict(feats), stock.predict(other_feats)):
        assert torch.equal(own.pred_score, other.pred_score)


def test_the_term_against_a_naive_loop():
    """Of the probabilities that the head predicts; relative to the weight of the stock loss."""
    head = wrapped(rho=2.0)
    leaves, feats = made_feats()
    records = []
    head.lt_recorder = records.append
    losses = head.loss(feats, cls_samples(IDS))
    scores = head(feats)
    torch.testing.assert_close(
        torch.stack([sample.pred_score for sample in head.predict(feats)]),
        sum(scores).softmax(dim=1),
    )
    assert torch.equal(records[0].logits, sum(scores).detach())
    expected = 2.0 * 0.5 * naive_term(scores, IDS)
    torch.testing.assert_close(losses['loss_lt_cls'].double(), expected)
    assert losses['lt_num_paired'] == 6
    inputs = [*leaves, *head.parameters()]
    found = torch.autograd.grad(losses['loss_lt_cls'], inputs)
    for own, other in zip(found, torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(own, other)
        assert own.any()


def test_replicas_that_predict_the_same_have_no_term():
    """Also where the branches exchange what they say, for only their sum predicts."""
    head = wrapped()
    with torch.no_grad():
        head.trans_cls_head.weight.copy_(head.conv_cls_head.weight[:, :4])
    first, second = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    narrow = torch.stack([first, second]).requires_grad_()
    wide = torch.cat([narrow.flip(0), torch.zeros(2, 1)], dim=1)
    losses = head.loss(([wide, narrow],), cls_samples([4, 4]))
    assert not torch.allclose(*head(([wide, narrow],)))
    losses['loss_lt_cls'].backward()
    assert losses['loss_lt_cls'].abs() < 1e-7 and narrow.grad.abs().max() < 1e-4
    assert losses['loss'] > 0


def test_the_stock_loss_on_one_copy():
    plain, head = build_cls_head(CONFIG), wrapped(supervise='one')
    leaves, feats = made_feats()
    losses = head.loss(feats, cls_samples(IDS))
    seen = [0, 2]
    expected = plain.loss(([leaf[seen] for leaf in leaves],), cls_samples([7, 2]))
    assert torch.equal(losses['loss'], expected['loss'])
    torch.testing.assert_close(losses['loss_lt_cls'].double(), 0.5 * naive_term(plain(feats), IDS))


def test_a_memory_compares_with_the_sum_of_earlier_epochs():
    head = wrapped(memory=dict(momentum=0.5))
    probabilities = []
    for seed in range(2):
        leaves, feats = made_feats(seed)
        feats = ([leaf[:2] for leaf in feats[0]],)
        losses = head.loss(feats, cls_samples([7, 2]))
        probabilities.append(sum(head(feats)).double().softmax(dim=1))
        assert losses['lt_num_paired'] == 2 * seed
    before, now = probabilities[0].detach(), probabilities[1]
    expected = 0.5 * (before * (before / now.detach()).log()).sum() / 2
    assert float(losses['loss_lt_cls'].detach()) == pytest.approx(float(expected), rel=2e-3)
    losses['loss_lt_cls'].backward()
    assert all(leaf.grad[:2].any() for leaf in leaves)


class TwoBranches(BaseModel):
    """The head on two layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(3, width) for width in (5, 4))
        self.head = wrapped()

    def forward(self, inputs, data_samples, mode):
        return self.head.loss(([branch(inputs) for branch in self.branches],), data_samples)


def test_micro_batches():
    """Replicas lie in different parts."""
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    log = assert_joint(
        TwoBranches(), dict(inputs=inputs, data_samples=cls_samples(IDS)), (2, 3), 1e-5
    )
    assert log['loss_lt_cls'] > 0 and log['lt_num_paired'] == 6
