"""The term on the single-stage heads with targets of their own: contracts, pairs, terms."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from lt_mm.structures.errors import UnsupportedHeadError
from tests import reference_losses as twin
from tests.models.heads import dense_data
from tests.models.heads.dense_data import HEADS, total, values_of
from tests.models.heads.head_data import FLIP, ZOOM, det_sample, to_source
from tests.models.heads.zoo_kinds import KINDS
from tests.models.heads.zoo_queries import QUERY_KINDS, Phrases, with_phrases

KINDS = KINDS | QUERY_KINDS


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def replicas():
    return [
        det_sample(3),
        det_sample(3, flip=True),
        det_sample(3, view=ZOOM),
        det_sample(8, instances=(0,)),
        det_sample(8, view=FLIP @ ZOOM),
    ]


def split(losses):
    """The stock losses, and what the wrap adds, without the prefix of a RPN."""
    stock = [(key, value) for key, value in values_of(losses) if 'lt_' not in key]
    return stock, {key.replace('rpn_', ''): value for key, value in losses.items() if 'lt_' in key}


def test_rho_zero_is_the_stock_head(kind):
    """State dict, predictions, losses and gradients."""
    plain, head = kind.build(), kind.build(rho=0)
    assert isinstance(head, type(plain)) and list(head.state_dict()) == list(plain.state_dict())
    expected, found = (kind.losses_of_inputs(each, replicas()) for each in (plain, head))
    stock, terms = split(found)
    assert [key for key, _ in stock] == [key for key, _ in values_of(expected)]
    for (key, mine), (_, theirs) in zip(stock, values_of(expected)):
        assert torch.equal(mine, theirs), key
    assert terms['loss_lt_cls'] == terms['loss_lt_bbox'] == 0
    assert terms['lt_kl_cls'] > 0 and terms['lt_kl_bbox'] > 0
    total(expected).backward()
    total(found).backward()
    for mine, theirs in zip(head.parameters(), plain.parameters()):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
    with torch.no_grad():
        count = kind.num_predicted
        predicted = [
            each.eval().predict(*kind.inputs(count), with_phrases(replicas()[:count]))
            for each in (plain, head)
            if count
        ]
    for theirs, mine in zip(*predicted):
        for name in ('bboxes', 'scores'):
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True)


def naive_terms(kind, outputs, samples):
    """The terms by name and the group ids, from loops over single predictions."""
    head = kind.build()
    positives = kind.positives(head, outputs, samples)
    found = [(image, row, k) for image, own in enumerate(positives) for row, k in own]
    gts = [sample.gt_instances for sample in samples]
    instances = [tuple(gts[image].source_ids[k].tolist()) for image, _, k in found]
    images = [image for image, _, _ in found]
    groups = twin.across_replicas(instances, images, [True] * len(found))
    boxes = [kind.box(head, outputs, image, row) for image, row, _ in found]
    places = [gts[image].bboxes[k] for image, _, k in found]
    groups = twin.resort(groups, images, list(map(twin.distance, boxes, places)))
    logits = torch.stack([kind.logits(head, outputs, image, row) for image, row, _ in found])
    restored = torch.stack(
        [
            to_source(box, gts[image].source_matrices[k].numpy())
            for box, (image, _, k) in zip(boxes, found)
        ]
    )
    options = dict(detach_mean=False, avg_factor=kind.normaliser(head, positives, samples))
    discrete = twin.bernoulli if kind.sigmoid else twin.categorical
    whole = [(~gts[image].cut_sides[k]).tolist() for image, _, k in found]
    terms = dict(
        cls=discrete(logits, groups, temperature=1.0, **options),
        bbox=twin.box(restored, groups, whole, **options),
    )
    objectness = [kind.objectness(head, outputs, image, row) for image, row, _ in found]
    if objectness[0] is not None:
        terms['obj'] = twin.bernoulli(torch.stack(objectness), groups, **options)
    return terms, groups


def test_terms_against_a_naive_loop(kind):
    rhos = dict(cls=2.0, bbox=0.5, obj=3.0)
    head = kind.build(**{f'rho_{name}': rho for name, rho in rhos.items()})
    samples = replicas()
    outputs, leaves = kind.outputs(head, len(samples))
    _, found = split(kind.losses(head, outputs, samples))
    terms, groups = naive_terms(kind, outputs, samples)
    assert ('loss_lt_obj' in found) == ('obj' in terms)
    paired = sum(len(twin.positives(groups, i)) > 1 for i in range(len(groups)))
    assert found['lt_num_paired'] == paired and len(set(groups) - {-1}) >= 2
    assert min(terms.values()) > 1e-4
    for name, naive in terms.items():
        term, expected = found[f'loss_lt_{name}'], rhos[name] * naive
        torch.testing.assert_close(term.double(), expected, rtol=1e-4, atol=1e-6)
        gradients = [
            torch.autograd.grad(
                value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for value in (term, expected)
        ]
        for mine, theirs in zip(*gradients):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_mirrored_predictions_of_mirrored_replicas_cost_nothing(kind):
    samples = [det_sample(3), det_sample(3, flip=True)]
    head = kind.build(rho=1.0)
    with torch.no_grad():
        outputs, _ = kind.outputs(head, 2)
        _, found = split(kind.losses(head, kind.mirrored(head, outputs), samples))
        _, wrong = split(kind.losses(head, outputs, samples))
    assert found['lt_num_paired'] == 4
    assert found['loss_lt_cls'] < 1e-6 and found['loss_lt_bbox'] < 1e-6
    assert wrong['loss_lt_bbox'] > 1e-3


@pytest.mark.parametrize(
    'instances', [((), ()), ((0,), ()), ((0,), (1,))], ids=['none', 'one', 'none in common']
)
def test_without_pairs_the_terms_are_zero_with_a_graph(kind, instances):
    head = kind.build(rho=1.0)
    samples = [det_sample(1, instances=own) for own in instances]
    outputs, leaves = kind.outputs(head, 2)
    losses = kind.losses(head, outputs, samples)
    _, found = split(losses)
    term = found['loss_lt_cls'] + found['loss_lt_bbox']
    assert term == 0 and found['lt_num_paired'] == 0
    term.backward(retain_graph=True)
    assert all((leaf.grad == 0).all() for leaf in leaves)
    total(losses).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def of_images(value, images, count):
    """The part of raw predictions for ``count`` images that tells of some of them."""
    if isinstance(value, torch.Tensor):
        dim = next(dim for dim, size in enumerate(value.shape) if size == count)
        return value.index_select(dim, torch.tensor(images))
    return type(value)(of_images(each, images, count) for each in value)


def test_the_stock_losses_are_those_of_the_supervised_images(kind):
    """Unlabelled images, and copies beside the first: left out bit for bit, or refused."""
    plain, samples = kind.build(), replicas()
    for options, seen in ((dict(supervise='one'), [0, 3]), (dict(score_threshold=1.0), [0, 1, 3])):
        head = kind.build(rho=1.0, **options)
        own = copy.deepcopy(samples)
        for image, sample in enumerate(own):
            facts = dict(is_labelled='supervise' in options or image in seen)
            sample.gt_instances.set_metainfo(facts)
            if not facts['is_labelled']:
                sample.gt_instances = sample.gt_instances[:0]
        outputs, _ = kind.outputs(head, len(own))
        if not head.lt_splits_batches:
            with pytest.raises(UnsupportedHeadError, match='cannot be left out'):
                kind.losses(head, outputs, own)
            continue
        stock, terms = split(kind.losses(head, outputs, own))
        if 'supervise' in options:  # n and pairs are those of a batch that is seen whole
            _, whole = split(kind.losses(kind.build(rho=1.0), outputs, own))
            for name in ('loss_lt_cls', 'loss_lt_bbox', 'lt_num_paired'):
                torch.testing.assert_close(terms[name], whole[name], msg=name)
        expected = kind.losses(
            plain, of_images(outputs, seen, len(own)), [own[image] for image in seen]
        )
        for (key, mine), (_, theirs) in zip(stock, values_of(expected), strict=True):
            assert torch.equal(mine, theirs), key


# Heads that share what is read with another one: (its kind, their own arguments, further outputs).
ALIKE = {
    'LDHead': (
        'GFL',
        dict(loss_ld=dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10)),
        lambda head, outputs: dict(soft_targets=[level.detach().flip(1) for level in outputs[1]]),
    ),
    'PISASSDHead': (
        'SSD',
        dict(
            train_cfg=HEADS['SSD']['train_cfg']
            | dict(isr=dict(k=2.0, bias=0.0), carl=dict(k=1.0, bias=0.2))
        ),
        lambda head, outputs: {},
    ),
    'RTMDetInsHead': (
        'RTMDet',
        dict(num_prototypes=2, dyconv_channels=2, mask_loss_stride=8),
        lambda head, outputs: dict(
            kernel_preds=[
                level.new_ones(len(level), head.num_gen_params, *level.shape[2:])
                for level in outputs[0]
            ],
            mask_feat=outputs[0][0].detach()[:, :2],
        ),
    ),
}


@pytest.mark.parametrize('name', ALIKE)
def test_heads_with_further_losses_have_the_terms_of_their_kind(name):
    kind, changes, extra = ALIKE[name]
    plain, samples = dense_data.build(kind, rho=1.0), replicas()
    init_default_scope('mmdet')
    config = ConfigDict(HEADS[kind], test_cfg=None) | dict(type=name) | copy.deepcopy(changes)
    head = MODELS.build(
        dict(type='lt_mm.LossTransformHead', head=config, rho=1.0, strength='plain')
    )
    outputs, _ = dense_data.made_outputs(kind, plain, len(samples))
    expected = dense_data.losses_of(kind, plain, outputs, samples)
    found = head.loss_by_feat(
        *outputs,
        batch_gt_instances=[sample.gt_instances for sample in samples],
        batch_img_metas=[sample.metainfo for sample in samples],
        **extra(head, outputs),
    )
    assert len(found) > len(expected)
    for key in (key for key in expected if 'lt_' in key):
        torch.testing.assert_close(found[key], expected[key])
    total(found).backward()


def test_guided_proposals_have_the_terms_of_guided_anchors():
    kind, samples = KINDS['GA RetinaNet'], replicas()
    for sample in samples:
        sample.gt_instances.labels.zero_()
    one, rpn = (
        type(kind)(dict(kind.config, num_classes=1)),
        type(kind)(
            {
                key: value
                for key, value in kind.config.items()
                if key not in ('num_classes', 'stacked_convs')
            }
            | dict(type='GARPNHead')
        ),
    )
    head = one.build(rho=1.0)
    outputs, _ = one.outputs(head, len(samples))
    expected = one.losses(head, outputs, samples)
    found = rpn.losses(rpn.build(rho=1.0), outputs, samples)
    assert expected['loss_lt_cls'] > 0 and expected['loss_lt_bbox'] > 0
    for key in (key for key in expected if 'lt_' in key):
        torch.testing.assert_close(found[key.replace('lt_', 'rpn_lt_')], expected[key])


@pytest.mark.parametrize('pairing', ['iou', 'gt_score'])
def test_only_tokens_do_not_pair_by_their_scores(kind, pairing):
    """Scores of tokens name no class; all other heads pair, and have a gradient."""
    head = kind.build(rho=1.0, pairing=pairing, score_threshold=0.05)
    outputs, leaves = kind.outputs(head, len(replicas()))
    if isinstance(kind, Phrases):
        with pytest.raises(UnsupportedHeadError, match=f"no token is a class, .*'{pairing}' needs"):
            kind.losses(head, outputs, replicas())
        return
    losses = kind.losses(head, outputs, replicas())
    assert next(value for key, value in losses.items() if 'lt_num_paired' in key) > 0
    gradients = torch.autograd.grad(total(losses), leaves, allow_unused=True)
    assert all(each.isfinite().all() for each in gradients if each is not None)
