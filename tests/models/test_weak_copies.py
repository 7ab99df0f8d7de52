"""Weak copies go through a model without a graph, or through its average."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from lt_mm.models.weak_copies import WeakCopiesMixin, set_weak_copies_apart
from lt_mm.structures.errors import UnsupportedHeadError
from tests.models.heads.head_data import SHAPE, cls_samples, det_sample
from tests.models.model_data import model_config

WEAK = [2, 5]


def built(kind, teacher=False, **options):
    """A narrow stock model whose head compares with weak copies."""
    init_default_scope('mmpretrain' if kind == 'classifier' else 'mmdet')
    config = model_config(kind, across_ranks=False)
    options = dict(weak_target=dict(threshold=0.0, teacher=teacher), **options)
    name = dict(classifier='head', ATSS='bbox_head').get(kind, 'roi_head')
    config[name].update(options)
    if name == 'roi_head':
        config['rpn_head'] = dict(
            type='lt_mm.LossTransformHead', head=config['rpn_head'], **dict(options, rho=0.0)
        )
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config))
    with torch.no_grad():  # predictions that differ
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and 'backbone' not in name:
                parameter.mul_(3)
    return model.train()


def batch(kind):
    """Two labelled images, and the two copies of two unlabelled ones."""
    if kind == 'classifier':
        samples = cls_samples([3, 4, 5, 5, 8, 8])
    else:
        ids, flips = (3, 4, 5, 5, 8, 8), (0, 0, 0, 1, 1, 0)
        samples = [
            det_sample(source, flip=bool(flip), instances=(0, 1) if image < 2 else ())
            for image, (source, flip) in enumerate(zip(ids, flips))
        ]
    for image, sample in enumerate(samples):
        facts = dict(is_labelled=image < 2, is_weak=image in WEAK, num_replicas=2 - (image < 2))
        holders = [sample] if kind == 'classifier' else [sample, sample.gt_instances]
        for holder in holders:
            holder.set_metainfo(dict(facts, batch_input_shape=SHAPE))
    images = torch.randn(6, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    return images, samples


def loss_of(model, images, samples):
    torch.manual_seed(0)
    losses = model.loss(images, copy.deepcopy(samples))
    return model.parse_losses(losses)[0], losses


@pytest.mark.parametrize('kind', ['classifier', 'ATSS', 'Faster R-CNN'])
def test_without_a_graph_losses_and_gradients_are_the_same(kind):
    plain, model = built(kind, rho=2.0), built(kind, rho=2.0)
    names = list(plain.state_dict())
    set_weak_copies_apart(model)
    assert isinstance(model, WeakCopiesMixin) and list(model.state_dict()) == names
    calls = []
    model.backbone.register_forward_hook(
        lambda _, inputs, __: calls.append((len(inputs[0]), torch.is_grad_enabled()))
    )
    images, samples = batch(kind)
    (expected, _), (found, losses) = (loss_of(each, images, samples) for each in (plain, model))
    assert calls == [(2, False), (4, True)]
    assert any(value > 0 for key, value in losses.items() if 'lt_num_unlabelled_paired' in key)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    found.backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters()):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)
    # The model predicts as before.
    assert model._lt_rows is None and all(head.lt_teacher is None for head in heads_of(model))


@pytest.mark.parametrize('kind', ['classifier', 'ATSS'])  # mmcv's RoIAlign has no bfloat16
def test_under_autocast_the_same_weights_learn(kind):
    """Autocast must not reuse weights that it cast for the weak copies, which have no graph."""
    plain, model = built(kind, rho=2.0), built(kind, rho=2.0)
    set_weak_copies_apart(model)
    images, samples = batch(kind)
    for each in (plain, model):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            loss, _ = loss_of(each, images, samples)
        loss.backward()
    learning = 0
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters()):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None and theirs.grad.norm() > 1e-3:
            cosine = torch.cosine_similarity(mine.grad.flatten(), theirs.grad.flatten(), dim=0)
            assert cosine > 0.9, (name, cosine)
            learning += 1
    assert learning > 10


def heads_of(model):
    return [part for part in model.modules() if hasattr(part, 'lt_teacher') and part is not model]


def test_a_teacher_predicts_for_the_weak_copies():
    model, teacher = built('classifier', teacher=True), built('classifier').eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    images, samples = batch('classifier')
    with pytest.raises(ValueError, match='WeakTargetHook'):
        loss_of(model, images, samples)
    names = list(model.state_dict())
    set_weak_copies_apart(model, teacher)
    assert list(model.state_dict()) == names
    found, losses = loss_of(model, images, samples)
    with torch.no_grad():
        targets = teacher.head(teacher.extract_feat(images[WEAK])).softmax(dim=1)
    logits = model.head(model.extract_feat(images))
    log_p = logits[[3, 4]].log_softmax(dim=1)
    expected = (targets * (targets.log() - log_p)).sum() / 6
    torch.testing.assert_close(losses['loss_lt_cls'], expected)
    assert expected > 1e-3
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_of_a_dense_head():
    """With its own weights it changes nothing; with others, the targets."""
    model = built('ATSS', teacher=True)
    images, samples = batch('ATSS')
    terms = {}
    for factor in (1.0, 1.2):
        teacher = built('ATSS').eval()
        with torch.no_grad():
            for parameter in teacher.bbox_head.parameters():
                parameter.mul_(factor)
        set_weak_copies_apart(model, teacher)
        terms[factor] = loss_of(model, images, samples)[1]
    _, expected = loss_of(built('ATSS'), images, samples)
    for key in ('loss_lt_cls', 'loss_lt_bbox', 'lt_num_unlabelled_paired'):
        torch.testing.assert_close(terms[1.0][key], expected[key], rtol=1e-4, atol=1e-6)
    assert (terms[1.2]['loss_lt_cls'] - expected['loss_lt_cls']).abs() > 1e-6


def test_what_cannot_be_set_apart():
    with pytest.raises(UnsupportedHeadError, match='teacher=False'):
        set_weak_copies_apart(built('Faster R-CNN'), built('Faster R-CNN'))
    init_default_scope('mmpretrain')
    with pytest.raises(ValueError, match='no head compares'):
        set_weak_copies_apart(MODELS.build(model_config('classifier', across_ranks=False)))
