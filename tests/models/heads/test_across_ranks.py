"""Replicas on different ranks: the joint loss, its gradient, and no rank that hangs."""

import copy
import functools
from collections import Counter

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope

from lt_mm.structures.errors import UnpairedBatchError
from tests.models.heads.dense_data import build, losses_of, made_outputs
from tests.models.heads.head_data import (
    FLIP,
    SHAPE,
    ZOOM,
    build_cls_head,
    build_roi_head,
    cls_samples,
    det_sample,
    mask_roi_head_config,
)
from tests.models.heads.zoo_kinds import KINDS as LEVEL_KINDS
from tests.models.heads.zoo_queries import QUERY_KINDS
from tests.models.model_data import model_config
from tests.ranks import run_ranks

DENSE = ('RetinaNet', 'RetinaNet, softmax', 'ATSS', 'GFL', 'FCOS', 'YOLOX', 'DINO')
KINDS = LEVEL_KINDS | QUERY_KINDS
# With a normaliser or class scores of their own.
ZOO = ('TOOD, later', 'PAA', 'FSAF', 'FreeAnchor', 'Grounding DINO')
# The others, with one pairing. The made data of DDQ are those of five images.
OTHERS = tuple(name for name in KINDS if name not in (*ZOO, 'DDQ'))
WORLD = 2


def replicas():
    """Two sources, three replicas each; one lost an object, one is barely visible."""
    return [
        det_sample(3),
        det_sample(8),
        det_sample(3, flip=True),
        det_sample(8, instances=(0,)),
        det_sample(3, view=ZOOM),
        det_sample(8, view=FLIP @ ZOOM, visibility=0.1),
    ]


def terms_of(losses):
    """The sum of the consistency terms, and what is logged of them, as numbers."""
    loss = sum(value for key, value in losses.items() if 'loss_lt_' in key)
    return loss, {key: float(value.detach()) for key, value in losses.items() if 'lt_' in key}


def dense_terms(kind, images, options):
    """Terms of a dense head for some images of the batch, with the leaves' gradients."""
    head = build(kind, **options)
    outputs, leaves = made_outputs(kind, head, len(replicas()))
    axis = 1 if kind == 'DINO' else 0
    if kind == 'DINO':
        outputs = (
            outputs[0][:, images],
            outputs[1][:, images],
            *(encoder[images] for encoder in outputs[2:]),
        )
    else:
        outputs = tuple([level[images] for level in levels] for levels in outputs)
    samples = [replicas()[image] for image in images]
    if 'memory' in options:  # an earlier epoch, with other predictions
        losses_of(kind, head, [_halved(each) for each in outputs], samples)
    loss, logged = terms_of(losses_of(kind, head, outputs, samples))
    gradients = torch.autograd.grad(
        loss, leaves[:2] if kind == 'DINO' else leaves, allow_unused=True
    )
    return logged, [gradient.index_select(axis, torch.tensor(images)) for gradient in gradients]


def zoo_terms(name, images, options):
    """The same of the other single-stage heads."""
    kind = KINDS[name]
    head = kind.build(**{'strength': 'stock', **options})
    outputs, leaves = kind.outputs(head, len(replicas()))
    axis = 1 if isinstance(outputs[0], torch.Tensor) else 0
    chosen = tuple(
        each[:, images] if axis else [_of_images(level, images) for level in each]
        for each in outputs
    )
    samples = [replicas()[image] for image in images]
    if 'memory' in options:
        kind.losses(head, tuple(_halved(each) for each in chosen), samples)
    loss, logged = terms_of(kind.losses(head, chosen, samples))
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return logged, [gradient.index_select(axis, torch.tensor(images)) for gradient in gradients]


def _of_images(level, images):
    if isinstance(level, tuple):
        return tuple(each[images] for each in level)
    return level[images]


def _halved(outputs):
    return [0.5 * each for each in outputs] if isinstance(outputs, list) else 0.5 * outputs


def roi_terms(images, options):
    """Terms of a RoI head with boxes and masks; gradients of the features."""
    everything = dict(
        type='RandomSampler', num=1000, pos_fraction=1.0, neg_pos_ub=-1, add_gt_as_proposals=True
    )  # draws nothing
    head = build_roi_head(
        dict(type='lt_mm.LossTransformHead', head=mask_roi_head_config(), **options), everything
    )
    samples = [replicas()[image] for image in images]
    features = torch.randn(6, 8, 8, 12, generator=torch.Generator().manual_seed(0))
    features = features[images].requires_grad_()
    proposals = []
    for sample in samples:
        proposal = copy.deepcopy(sample.gt_instances)
        first, second = proposal.bboxes[0], proposal.bboxes[-1]
        proposals.append(
            type(proposal)(
                bboxes=torch.stack(
                    [
                        first + 3,
                        second - 2,
                        first - torch.tensor([4.0, 0.0, 0.0, 5.0]),
                        torch.tensor([0.0, 0.0, 9.0, 9.0]),
                    ]
                )
            )
        )
    if 'memory' in options:
        head.loss((features / 2,), copy.deepcopy(proposals), copy.deepcopy(samples))
    loss, logged = terms_of(head.loss((features,), proposals, copy.deepcopy(samples)))
    return logged, [torch.autograd.grad(loss, features)[0]]


def cls_terms(images, options):
    head = build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            head=dict(type='LinearClsHead', num_classes=3, in_channels=4),
            **options,
        )
    )
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    features = features[images].requires_grad_()
    samples = cls_samples([[3, 8, 3, 8, 3, 8][image] for image in images])
    if 'memory' in options:
        head.loss((features / 2,), samples)
    loss, logged = terms_of(head.loss((features,), samples))
    return logged, [torch.autograd.grad(loss, features)[0]]


def terms(case, images, options):
    if case == 'classifier':
        return cls_terms(images, options)
    if case == 'RoI head':
        return roi_terms(images, options)
    if case in KINDS:
        return zoo_terms(case, images, options)
    return dense_terms(case, images, options)


def all_terms(rank, cases, options, parts):
    return {
        case: terms(case, parts[rank], options)
        for case in cases
        if not (case == 'Grounding DINO' and options.get('pairing') == 'iou')
    }


CASES = ('classifier', 'RoI head', *DENSE, *ZOO)
OPTIONS = {
    'gt': dict(rho=1.0),
    'gt_mean': dict(rho=0.7, pairing='gt_mean', detach_mean=True),
    'memory': dict(rho=1.0, memory=dict(momentum=0.6)),
    'iou': dict(rho=1.0, pairing='iou', score_threshold=0.3, iou_threshold=0.1, max_candidates=40),
}
# Replicas of a source are on different ranks; ranks hold different numbers of images.
PARTS = ([0, 1, 2, 3], [4, 5])


@pytest.fixture(scope='module', params=OPTIONS)
def on_ranks(request):
    options = OPTIONS[request.param]
    cases = CASES + OTHERS if request.param == 'gt' else CASES
    return request.param, run_ranks(
        all_terms, WORLD, cases, dict(options, across_ranks=True), PARTS
    )


@pytest.mark.parametrize('case', CASES + OTHERS)
def test_ranks_together_give_the_loss_and_gradient_of_the_joint_batch(case, on_ranks):
    """Also through the mean, where the other predictions of a group are elsewhere."""
    pairing, found = on_ranks
    if case not in found[0]:
        # Grounding DINO has no classes, and is refused.
        assert case in OTHERS or (case, pairing) == ('Grounding DINO', 'iou')
        return
    expected, gradients = terms(case, list(range(6)), OPTIONS[pairing])
    assert expected['lt_num_paired'] > 0 and expected['lt_kl_cls'] > 0
    # The stock loss of YOLOv3 is a sum, of which the ranks take the mean; so is its term.
    shares = WORLD if case == 'YOLOv3' else 1
    for key, value in expected.items():
        mine = [rank[case][0][key] for rank in found]
        if key in ('lt_num_paired', 'lt_num_box_pairs'):
            assert sum(mine) == value
        elif key != 'lt_paired_share':
            assert mine[0] == mine[1]
            torch.testing.assert_close(mine[0], value / shares, rtol=1e-5, atol=1e-7)
    for number, gradient in enumerate(gradients):
        assert gradient.abs().max() > 0 or 'cls' not in case
        axis = 1 if 'DINO' in case else 0
        for rank, images in zip(found, PARTS):
            # The wrapper of the model will take the mean over the ranks.
            torch.testing.assert_close(
                rank[case][1][number] / WORLD,
                gradient.index_select(axis, torch.tensor(images)) / shares,
                rtol=1e-4,
                atol=1e-7,
            )


def num_collectives(rank, cases):
    """How often the terms make the ranks talk to each other in a step of a head."""
    counts = Counter()

    def counting(stock, *args, **kwargs):
        counts[case] += 1
        return stock(*args, **kwargs)

    for name in ('all_gather', 'all_gather_into_tensor', 'all_reduce', 'broadcast', 'barrier'):
        stock = getattr(torch.distributed, name)
        setattr(torch.distributed, name, functools.partial(counting, stock))
    for case in cases:
        terms(case, PARTS[rank], dict(rho=1.0, across_ranks=True))
        wrapped = counts[case]
        counts[case] = 0
        terms(case, PARTS[rank], dict(rho=1.0, across_ranks=False))
        counts[case] = wrapped - counts[case]
    return counts


def test_a_head_gathers_once():
    """The count of the candidates and the candidates, whatever is compared of them."""
    for counts in run_ranks(num_collectives, WORLD, CASES):
        # The box head and the mask head of a RoI head are two.
        assert counts == {case: 4 if case == 'RoI head' else 2 for case in CASES}


def uneven(rank):
    """Ranks without an object, without a pair, with unequal numbers of everything."""
    parts = {
        'one rank has no object': (
            [det_sample(1), det_sample(1, flip=True)],
            [det_sample(2, instances=())],
        ),
        'no object at all': ([det_sample(1, instances=())], [det_sample(1, instances=())]),
        'no pair': ([det_sample(1, instances=(0,))], [det_sample(1, instances=(1,))]),
        'no visible pair': ([det_sample(1, visibility=0.0)], [det_sample(1)]),
        'many and one': (
            [det_sample(1), det_sample(1, flip=True), det_sample(2), det_sample(2, view=ZOOM)],
            [det_sample(1, instances=(1,))],
        ),
    }
    found = {}
    for kind in ('RetinaNet', 'FCOS', 'GFL'):
        for name, part in parts.items():
            head = build(kind, rho=1.0, across_ranks=True)
            outputs, leaves = made_outputs(kind, head, len(part[rank]), seed=rank)
            losses = losses_of(kind, head, outputs, part[rank])
            loss, logged = terms_of(losses)
            loss.backward()
            finite = all(
                leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves[:2]
            )
            found[kind, name] = logged, finite
    return found


def test_uneven_ranks_finish():
    first, second = run_ranks(uneven, WORLD, timeout=60)
    for kind, name in first:
        for logged, finite in (first[kind, name], second[kind, name]):
            assert finite
            assert (logged['lt_kl_cls'] > 0) == (
                name in ('one rank has no object', 'many and one')
            ), (kind, name)
    assert second['GFL', 'one rank has no object'][0]['lt_num_paired'] == 0
    assert second['GFL', 'many and one'][0]['lt_num_paired'] > 0


def unpaired(rank, across_ranks):
    """Ten batches of which each rank has one replica, and one source that is alone."""
    head = build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            across_ranks=across_ranks,
            head=dict(type='LinearClsHead', num_classes=3, in_channels=4),
        )
    )
    losses = []
    try:
        for _ in range(10):
            losses.append(head.loss((torch.randn(2, 4),), cls_samples([1, 2])))
    except UnpairedBatchError as error:
        return len(losses), str(error)
    return len(losses), None


def test_spread_replicas_without_exchange_are_refused_and_with_it_accepted():
    for batches, message in run_ranks(unpaired, WORLD, False):
        assert batches == 9 and 'across_ranks=True' in message
    assert run_ranks(unpaired, WORLD, True) == [(10, None)] * WORLD


def mixed_apart(rank):
    """Soft labels that differ between the ranks for one source."""
    head = build_cls_head(
        dict(
            type='lt_mm.LossTransformHead',
            across_ranks=True,
            mixed_labels='average',
            head=dict(type='LinearClsHead', num_classes=3, in_channels=4),
        )
    )
    samples = cls_samples([1, 2])
    scores = torch.tensor(
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] if rank else [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    )
    for sample, score in zip(samples, scores):
        sample.set_gt_score(score)
    head.loss((torch.randn(2, 4),), samples)
    averaged = torch.stack([sample.gt_score for sample in samples])
    for sample, score in zip(samples, scores):
        sample.set_gt_score(score)
        sample.set_metainfo(dict(mix_lambda=1.0 if rank else 0.5))
    with pytest.raises(ValueError, match="placement='rank'"):
        head.loss((torch.randn(2, 4),), samples)
    return averaged


def test_labels_of_replicas_on_different_ranks():
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    for averaged in run_ranks(mixed_apart, WORLD):
        assert torch.equal(averaged, expected)


def test_one_rank_needs_no_exchange():
    images = list(range(6))
    alone, gradients = terms('RoI head', images, dict(rho=1.0))
    across, others = terms('RoI head', images, dict(rho=1.0, across_ranks=True))
    assert alone == across
    assert all(map(torch.equal, gradients, others))


# ---------------------------------------------------------------------------
# Whole stock models below MMEngine's distributed wrapper
# ---------------------------------------------------------------------------


def gradients_of(kind, images, across_ranks=False, distributed=True):
    """Loss and gradients of one step on some images of a batch of four."""
    init_default_scope('mmpretrain' if kind == 'classifier' else 'mmdet')
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(model_config(kind, across_ranks)))
    for parameter in model.parameters():  # none zero, as some biases are at first
        torch.nn.init.normal_(parameter, std=0.2)
    model.train()
    pictures = torch.rand(4, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    views = [(3, None), (3, FLIP), (8, None), (8, ZOOM)]
    samples = (
        cls_samples([source for source, _ in views])
        if kind == 'classifier'
        else [det_sample(source, view=view) for source, view in views]
    )
    wrapped = (
        MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
        if distributed
        else model
    )
    losses = wrapped(pictures[images], [samples[image] for image in images], mode='loss')
    loss = sum(
        sum(value) if isinstance(value, list) else value
        for key, value in losses.items()
        if 'loss' in key
    )
    loss.backward()
    return (
        float(loss.detach()),
        float(losses['lt_num_paired']),
        {name: parameter.grad for name, parameter in model.named_parameters()},
    )


def gradients_of_all_kinds(rank, parts, across_ranks):
    return {kind: gradients_of(kind, parts[rank], across_ranks) for kind in MODELS_HERE}


MODELS_HERE = ('classifier', 'ATSS', 'Faster R-CNN')
PLACEMENTS = {'rank': ([0, 1], [2, 3]), 'spread': ([0, 2], [1, 3])}


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_two_processes_train_like_one_on_the_joint_batch(placement):
    found = run_ranks(
        gradients_of_all_kinds, WORLD, PLACEMENTS[placement], placement == 'spread', timeout=120
    )
    for kind in MODELS_HERE:
        loss, pairs, gradients = gradients_of(kind, [0, 1, 2, 3], distributed=False)
        (mine, my_pairs, first), (theirs, their_pairs, second) = (rank[kind] for rank in found)
        assert pairs > 0 and my_pairs + their_pairs == pairs, kind
        assert (mine + theirs) / 2 == pytest.approx(loss, rel=1e-5), kind
        scale = max(gradient.abs().max() for gradient in gradients.values())
        for name, gradient in gradients.items():
            assert torch.equal(first[name], second[name]), (kind, name)
            difference = (first[name] - gradient).abs().max()
            assert difference <= 1e-5 * scale, (kind, name, float(difference / scale))
