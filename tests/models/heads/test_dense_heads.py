"""LossTransformHead on MMDetection's single-stage heads: contracts, pairs, terms."""

import copy
import pickle

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError, UnsupportedHeadError
from tests import reference
from tests import reference_losses as twin
from tests.models.heads.dense_data import (
    CLASSES,
    DETR_LIKE,
    FCOS_LIKE,
    HEADS,
    STRIDES,
    anchor_at,
    as_the_head_gets,
    box_at,
    build,
    logits_at,
    losses_of,
    losses_of_inputs,
    made_inputs,
    made_outputs,
    mirrored,
    moved_anchor,
    objectness_at,
    place_of,
    score_factors,
    seed_samplers,
    side_logits_at,
    total,
    values_of,
)
from tests.models.heads.head_data import FLIP, IDENTITY, SHAPE, SHEAR, ZOOM, det_sample, to_source

ANCHORS = ('RetinaNet', 'RetinaNet, softmax', 'SSD', 'ATSS', 'GFL', 'RPN')
# A family each, for what the families share.
FAMILIES = ('RetinaNet', 'GFL', 'FCOS', 'YOLOX', 'DINO', 'RPN')


def replicas():
    """Three replicas of source 3, and two of source 8, one of which lost an object."""
    return [
        det_sample(3),
        det_sample(3, flip=True),
        det_sample(3, view=ZOOM),
        det_sample(8, instances=(0,)),
        det_sample(8, view=FLIP @ ZOOM),
    ]


def term_of(losses, kind):
    """The losses' term of one kind, 'cls' or 'bbox', under the name that the head uses."""
    return next(
        value for key, value in losses.items() if key in (f'loss_lt_{kind}', f'loss_rpn_lt_{kind}')
    )


def named_terms(losses):
    """The kinds of the head's terms."""
    kinds = [key.rpartition('_')[2] for key in losses if '_lt_' in key and key.startswith('loss_')]
    assert {'cls', 'bbox'} <= set(kinds)
    return kinds


def pairs_of(losses):
    return next(value for key, value in losses.items() if 'lt_num_paired' in key)


# ---------------------------------------------------------------------------
# The stock head stays what it is
# ---------------------------------------------------------------------------


@pytest.mark.parametrize('kind', HEADS)
def test_identity_of_the_stock_head(kind):
    plain, head = build(kind), build(kind, rho=1.0)
    assert isinstance(head, type(plain)) and type(head) is not type(plain)
    assert list(head.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in head.named_parameters()] == [n for n, _ in plain.named_parameters()]
    head.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(head.state_dict(), strict=True)
    samples, inputs = replicas()[:2], made_inputs(kind, 2)
    if kind == 'SSD':  # the stock head cannot predict: MMDetection reads an attribute that it lacks
        with torch.no_grad(), pytest.raises(AttributeError, match='loss_cls'):
            plain.eval().predict(*inputs, samples)
        plain.loss_cls = None
    with torch.no_grad():
        for mine, theirs in zip(
            head.eval().predict(*inputs, samples), plain.eval().predict(*inputs, samples)
        ):
            assert len(theirs) and torch.equal(mine.bboxes, theirs.bboxes)
            assert torch.equal(mine.scores, theirs.scores)


@pytest.mark.parametrize('kind', HEADS)
def test_rho_zero_is_the_stock_loss_bit_for_bit(kind):
    plain, head = build(kind), build(kind, rho=0)
    expected = losses_of_inputs(kind, plain, replicas())
    losses = losses_of_inputs(kind, head, replicas())
    total(expected).backward()
    total(losses).backward()
    stock = list(values_of(expected))
    found = [(key, value) for key, value in values_of(losses) if 'lt_' not in key]
    assert [key for key, _ in found] == [key for key, _ in stock]
    for (key, mine), (_, theirs) in zip(found, stock):
        assert torch.equal(mine, theirs), key
    gradients = [parameter.grad for parameter in plain.parameters()]
    assert any(gradient is not None for gradient in gradients)
    for parameter, gradient in zip(head.parameters(), gradients):
        assert parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)
    assert term_of(losses, 'cls') == term_of(losses, 'bbox') == 0
    prefix = 'rpn_' if kind == 'RPN' else ''
    assert losses[f'{prefix}lt_kl_cls'] > 0 and losses[f'{prefix}lt_kl_bbox'] > 0


@pytest.mark.parametrize('kind', HEADS)
def test_the_stock_losses_do_not_change_with_rho(kind):
    """And all parameters that the stock loss trains get a finite gradient."""
    plain, head = build(kind), build(kind, rho=2.0)
    expected = dict(losses_of_inputs(kind, plain, replicas()))
    losses = losses_of_inputs(kind, head, replicas())
    for (key, theirs), (_, mine) in zip(
        values_of(expected), values_of({key: losses[key] for key in expected})
    ):
        assert torch.equal(mine, theirs), key
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


# ---------------------------------------------------------------------------
# The terms against a naive loop
# ---------------------------------------------------------------------------


def _targets(kind, head, outputs, samples):
    """What the stock head's ``_get_targets_single`` gives for the final predictions."""
    samples = as_the_head_gets(kind, samples)
    if kind in DETR_LIKE:
        return [
            head._get_targets_single(
                logits[-len(logits) + _skipped(kind) :],
                boxes[_skipped(kind) :],
                sample.gt_instances,
                sample.metainfo,
            )
            for logits, boxes, sample in zip(outputs[0][-1], outputs[1][-1], samples)
        ]
    single, seen = head._get_targets_single, []

    def noted(*args, **kwargs):
        seen.append(single(*args, **kwargs))
        return seen[-1]

    head._get_targets_single = noted
    losses_of(kind, head, outputs, samples)
    del head._get_targets_single
    return seen


def _skipped(kind):
    return 4 if kind == 'DINO' else 0


def _positives(kind, head, target, sample):
    """(row, annotation) of each positive of an image, found by the targets' boxes."""
    gt = as_the_head_gets(kind, [sample])[0].gt_instances
    if kind == 'YOLOX':
        rows = [row for row, positive in enumerate(target[0]) if positive]
        labels = [int(scores.argmax()) for scores in target[1]]
        boxes = list(target[3])
    else:
        labels = target[1] if kind in ('ATSS', 'GFL', 'RTMDet') else target[0]
        rows = [row for row, label in enumerate(labels) if 0 <= label < head.num_classes]
        labels = [int(labels[row]) for row in rows]
        boxes = [_target_box(kind, head, target, row, sample) for row in rows]
    return [
        (row, twin.annotation(box.tolist(), label, gt.bboxes.tolist(), gt.labels.tolist()))
        for row, label, box in zip(rows, labels, boxes)
    ]


def _target_box(kind, head, target, row, sample):
    if kind in DETR_LIKE:
        x, y, w, h = target[2][row].double()
        height, width = sample.img_shape
        return torch.stack(
            [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        )
    if kind in FCOS_LIKE:
        level, y, x, _ = place_of(head, row)
        left, top, right, bottom = target[1][row].double()
        x, y = (x + 0.5) * STRIDES[level], (y + 0.5) * STRIDES[level]
        return torch.stack([x - left, y - top, x + right, y + bottom])
    if kind in ('ATSS', 'GFL', 'RTMDet'):
        return target[3][row]
    if kind == 'RetinaNet, softmax':
        return target[2][row]
    return moved_anchor(anchor_at(head, row), target[2][row], head)


def _normaliser(kind, targets, positives):
    """n as the stock loss has it: positives, and what a sampler drew besides."""
    if kind == 'RPN':
        return sum(int((target[1] > 0).sum()) for target in targets)
    if kind == 'RTMDet':
        weight = sum(float(target[4].double().sum()) for target in targets)
        return max(weight, 1) * sum(map(len, positives)) / weight
    least = 1 if kind in ANCHORS else 0
    return max(sum(max(len(own), least) for own in positives), 1)


def naive_terms(
    kind,
    outputs,
    samples,
    pairing='gt',
    temperature=1.0,
    detach_mean=False,
    change=lambda head: None,
):
    """The terms by name, the group ids and the share of paired instances, from loops."""
    head = build(kind)
    change(head)
    targets = _targets(kind, head, outputs, samples)
    positives = [_positives(kind, head, *both) for both in zip(targets, samples)]
    found = [
        (image, row, annotation) for image, own in enumerate(positives) for row, annotation in own
    ]
    gts = [sample.gt_instances for sample in samples]
    instances = [tuple(gts[image].source_ids[k].tolist()) for image, _, k in found]
    views = [gts[image].source_matrices[k].numpy() for image, _, k in found]
    images = [image for image, _, _ in found]
    keep = [bool(gts[image].visibility[k] >= 0.3) for image, _, k in found]
    groups = twin.across_replicas(instances, images, keep)
    share = len({(image, k) for (image, _, k), group in zip(found, groups) if group >= 0}) / max(
        sum(len(gt.bboxes) for gt in gts), 1
    )
    logits = torch.stack([logits_at(kind, head, outputs, image, row) for image, row, _ in found])
    boxes = [
        box_at(kind, head, outputs, image, row, samples[image].img_shape) for image, row, _ in found
    ]
    restored = torch.stack([to_source(box, view) for box, view in zip(boxes, views)])
    if pairing == 'gt':
        places = [gts[image].bboxes[k] for image, _, k in found]
        groups = twin.resort(groups, images, list(map(twin.distance, boxes, places)))
    is_softmax = kind in ('RetinaNet, softmax', 'SSD', 'DETR')
    if pairing == 'gt_score':
        factors = score_factors(kind, outputs)
        scores = [
            float((own.softmax(0) if is_softmax else own.sigmoid())[: head.num_classes].max())
            * (factors[image][row] if factors else 1)
            for own, (image, row, _) in zip(logits.detach(), found)
        ]
        groups = twin.resort(groups, images, [-score for score in scores])
    options = dict(detach_mean=detach_mean, avg_factor=_normaliser(kind, targets, positives))
    whole = [(~gts[image].cut_sides[k]).tolist() for image, _, k in found]
    discrete = twin.categorical if is_softmax else twin.bernoulli
    compared = groups
    if pairing == 'gt_mean':
        compared = twin.one_each(groups, images)
        logits = twin.mean_logits(logits, not is_softmax, groups, images, temperature)
        restored = twin.averaged(restored, groups, images)
    cls_term = discrete(logits, compared, temperature=temperature, **options)
    if kind == 'GFL':
        sides = [
            _sides_in_source(head, outputs, image, row, view)
            for (image, row, _), view in zip(found, views)
        ]
        box_term = twin.sides(
            torch.stack([logits for logits, _ in sides]),
            torch.stack([places for _, places in sides]),
            groups,
            whole,
            replicas=images if pairing == 'gt_mean' else None,
            **options,
        )
    else:
        box_term = twin.box(restored, compared, whole, **options)
    num_boxes = sum(
        any(
            twin.whole_positives(compared, i, whole, sides)
            for sides in ([[0], [1], [2], [3]] if kind == 'GFL' else [[0, 2], [1, 3]])
        )
        for i in range(len(groups))
    )
    terms = dict(cls=cls_term, bbox=box_term)
    if kind == 'YOLOX':
        objectness = [objectness_at(head, outputs, image, row) for image, row, _ in found]
        objectness = torch.stack(objectness)
        if pairing == 'gt_mean':
            objectness = twin.mean_logits(objectness, True, groups, images, temperature)
        terms['obj'] = twin.bernoulli(objectness, compared, temperature=temperature, **options)
    return terms, groups, share, num_boxes


def _sides_in_source(head, outputs, image, row, view):
    center, logits, distances = side_logits_at(head, outputs, image, row)
    places, sides = reference.side_positions(center, distances, view)
    return logits[sides], torch.tensor(places)


CASES = {
    **{(kind, 'gt'): {} for kind in HEADS},
    **{(kind, 'gt_score'): dict(pairing='gt_score') for kind in HEADS},
    **{(kind, 'gt_mean'): dict(pairing='gt_mean') for kind in HEADS},
    **{(kind, 'gt_all'): dict(pairing='gt_all') for kind in HEADS},
    **{(kind, 'options'): dict(temperature=2.0, detach_mean=True) for kind in FAMILIES},
}


def check_against_the_loop(kind, samples, change=lambda head: None, **options):
    head = build(kind, rho_cls=2.0, rho_bbox=0.5, rho_obj=3.0, **options)
    change(head)
    outputs, leaves = made_outputs(kind, head, len(samples))
    losses = losses_of(kind, head, outputs, samples)
    terms, groups, share, num_boxes = naive_terms(kind, outputs, samples, change=change, **options)
    paired = sum(len(twin.positives(groups, i)) > 1 for i in range(len(groups)))
    assert pairs_of(losses) == paired
    assert num_boxes == next(v for key, v in losses.items() if 'lt_num_box_pairs' in key)
    torch.testing.assert_close(
        next(value for key, value in losses.items() if 'lt_paired_share' in key),
        torch.tensor(share),
    )
    assert ('loss_lt_obj' in losses) == ('obj' in terms)
    rhos = dict(cls=2.0, bbox=0.5, obj=3.0)
    for name, term in terms.items():
        rho, found = rhos[name], term_of(losses, name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), rho * term, rtol=1e-4, atol=1e-6)
        # Where nothing of a map is positive, the loop has no graph to it.
        gradients = [
            torch.autograd.grad(
                value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for value in (found, rho * term)
        ]
        for mine, theirs in zip(*gradients):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    return terms, groups


@pytest.mark.parametrize('case', CASES, ids=', '.join)
def test_terms_against_a_naive_loop(case):
    terms, groups = check_against_the_loop(case[0], replicas(), **CASES[case])
    assert min(terms.values()) > 1e-4
    # Two instances of source 3 and one of source 8 have a group.
    assert len(set(groups) - {-1}) == 3


@pytest.mark.parametrize('pairing', ['gt', 'gt_score'])
def test_scores_that_are_not_finite_do_not_take_the_pairs_away(pairing):
    """The term says so, instead of being zero."""
    head = build('RetinaNet', rho=1.0, pairing=pairing)
    outputs, _ = made_outputs('RetinaNet', head, len(replicas()))
    finite = losses_of('RetinaNet', head, outputs, replicas())
    outputs = ([torch.full_like(level, torch.nan) for level in outputs[0]], *outputs[1:])
    losses = losses_of('RetinaNet', head, outputs, replicas())
    assert pairs_of(losses) == pairs_of(finite) > 0
    assert not torch.isfinite(term_of(losses, 'cls'))


def padded(sample, img_shape, pad_shape):
    """The sample as a smaller image that was filled up to the others' size."""
    sample.set_metainfo(dict(img_shape=img_shape, pad_shape=pad_shape, recorded_shape=img_shape))
    return sample


@pytest.mark.parametrize('kind', HEADS)
def test_padding_and_anchors_outside_the_image(kind):
    """Rows count all anchors, also where the stock head leaves some out."""
    samples = [
        padded(det_sample(3), (60, 88), (64, 88)),
        det_sample(3, flip=True),
        padded(det_sample(3, view=ZOOM), (64, 92), (64, 96)),
    ]

    def change(head):
        if kind in ANCHORS:
            head.train_cfg['allowed_border'] = 16 if kind in ('ATSS', 'GFL') else 2

    if kind in ANCHORS:
        head = build(kind)
        change(head)
        targets = _targets(kind, head, made_outputs(kind, head, 3)[0], samples)
        assert any(
            [row for row, _ in _positives(kind, head, target, sample)]
            != target[-1].pos_inds.tolist()
            for target, sample in zip(targets, samples)
        )
    check_against_the_loop(kind, samples, change)


# ---------------------------------------------------------------------------
# What the term sees
# ---------------------------------------------------------------------------


def _of_mirrored(kind, samples, mirror=True):
    head = build(kind, rho=1.0)
    outputs, _ = made_outputs(kind, head, 2)
    if mirror:
        outputs = mirrored(kind, head, outputs)
    else:
        outputs = tuple(
            [torch.cat([level[:1], level[:1]]) for level in levels]
            if kind not in DETR_LIKE
            else _repeated(levels)
            for levels in outputs
        )
    return losses_of(kind, head, outputs, samples)


def _repeated(value):
    first = value[:, :1] if value.dim() == 4 else value[:1]
    return torch.cat([first, first], dim=1 if value.dim() == 4 else 0)


@pytest.mark.parametrize('kind', HEADS)
def test_mirrored_predictions_of_mirrored_replicas_cost_nothing(kind):
    samples = [det_sample(3), det_sample(3, flip=True)]
    losses = _of_mirrored(kind, samples)
    assert pairs_of(losses) == 4
    for name in ('cls', 'bbox'):
        torch.testing.assert_close(term_of(losses, name), torch.tensor(0.0), atol=1e-6, rtol=0)
    # The same predictions are misaligned without the flip in the record, and it shows.
    wrong = copy.deepcopy(samples)
    wrong[1].gt_instances.source_matrices[:] = torch.tensor(IDENTITY)
    assert term_of(_of_mirrored(kind, wrong), 'bbox') > 1e-3
    # So are equal predictions for both replicas.
    assert term_of(_of_mirrored(kind, samples, mirror=False), 'bbox') > 1e-3


@pytest.mark.parametrize('kind', HEADS)
def test_hidden_instances_pair_with_nothing(kind):
    samples = [det_sample(3), det_sample(3, flip=True)]
    samples[1].gt_instances.visibility[0] = 0.2
    head = build(kind, min_visibility=0.3)
    outputs, _ = made_outputs(kind, head, 2)
    losses = losses_of(kind, head, outputs, samples)
    share = next(value for key, value in losses.items() if 'lt_paired_share' in key)
    assert share == 0.5  # one of two instances, in both replicas
    assert (
        0
        < pairs_of(losses)
        < pairs_of(losses_of(kind, build(kind, min_visibility=0.2), outputs, samples))
    )
    samples[1].gt_instances.visibility[1] = 0.2
    losses = losses_of(kind, head, outputs, samples)
    assert pairs_of(losses) == 0 and term_of(losses, 'cls') == 0
    total(losses).backward()


@pytest.mark.parametrize('kind', HEADS)
def test_sheared_instances_stay_out_of_the_box_term_only(kind):
    samples = [det_sample(3, view=SHEAR), det_sample(3, view=SHEAR)]
    head = build(kind, rho=1.0)
    outputs, leaves = made_outputs(kind, head, 2)
    losses = losses_of(kind, head, outputs, samples)
    assert term_of(losses, 'bbox') == 0 and term_of(losses, 'cls') > 0
    total(losses).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize(
    'samples',
    [
        lambda: [det_sample(1, instances=()), det_sample(1, instances=())],
        lambda: [det_sample(1), det_sample(1, instances=())],
        lambda: [det_sample(1, instances=(0,)), det_sample(1, instances=(1,))],
        lambda: [det_sample(1)],
    ],
    ids=['no object', 'objects in one', 'no common object', 'one replica'],
)
@pytest.mark.parametrize('kind', HEADS)
def test_without_pairs_the_terms_are_zero_with_a_graph(kind, samples):
    head, samples = build(kind, rho=1.0), samples()
    outputs, leaves = made_outputs(kind, head, len(samples))
    losses = losses_of(kind, head, outputs, samples)
    term = sum(term_of(losses, kind) for kind in named_terms(losses))
    assert term == 0 and pairs_of(losses) == 0
    term.backward(retain_graph=True)
    assert all((leaf.grad == 0).all() for leaf in leaves)
    total(losses).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize('kind', HEADS)
def test_terms_are_float32_under_autocast(kind):
    head = build(kind, rho=1.0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = losses_of_inputs(kind, head, replicas())
    for name in named_terms(losses):
        assert term_of(losses, name).dtype == torch.float32 and term_of(losses, name) > 0
    total(losses).backward()
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------


@pytest.mark.parametrize('kind', FAMILIES)
def test_samples_without_a_record(kind):
    head, samples = build(kind, rho=1.0), replicas()[:2]
    outputs, _ = made_outputs(kind, head, 2)
    del samples[1].gt_instances.source_matrices
    with pytest.raises(MissingRecordError, match="type='lt_mm.InvertiblePipeline'"):
        losses_of(kind, head, outputs, samples)


@pytest.mark.parametrize('kind', FAMILIES)
def test_batch_augments_that_resize_are_refused(kind):
    head, samples = build(kind, rho=1.0), replicas()[:2]
    outputs, _ = made_outputs(kind, head, 2)
    samples[1].set_metainfo(dict(img_shape=(60, 90)))
    with pytest.raises(MissingRecordError, match='BatchSyncRandomResize'):
        losses_of(kind, head, outputs, samples)


@pytest.mark.parametrize('kind', FAMILIES)
def test_training_without_replicas_stops(kind):
    head, samples = build(kind, rho=1.0), [det_sample(1), det_sample(2)]
    outputs, _ = made_outputs(kind, head, 2)
    for _ in range(9):
        losses_of(kind, head, outputs, samples)
    with pytest.raises(UnpairedBatchError, match='GroupedRepeatAugSampler'):
        losses_of(kind, head, outputs, samples)


@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))],
    ids=['deepcopy', 'pickle'],
)
@pytest.mark.parametrize('kind', FAMILIES)
def test_copies_are_wrapped_too(kind, copied):
    head = build(kind, rho=3.0)
    mine = losses_of_inputs(kind, head, replicas())
    theirs = losses_of_inputs(kind, copied(head), replicas())
    assert term_of(mine, 'cls') > 0
    for (key, one), (_, other) in zip(values_of(mine), values_of(theirs)):
        assert torch.equal(one, other), key


def test_an_error_in_the_stock_loss_leaves_nothing_behind():
    head, samples = build('RetinaNet', rho=1.0), replicas()
    outputs, _ = made_outputs('RetinaNet', head, len(samples))
    expected = losses_of('RetinaNet', head, outputs, samples)
    with pytest.raises(AssertionError):  # a level is missing
        losses_of('RetinaNet', head, (outputs[0][:1], outputs[1]), samples)
    losses = losses_of('RetinaNet', head, outputs, samples)
    assert torch.equal(losses['loss_lt_cls'], expected['loss_lt_cls'])


# ---------------------------------------------------------------------------
# Other stock heads
# ---------------------------------------------------------------------------

_CORNER = dict(num_classes=CLASSES, in_channels=8, num_feat_levels=1)
UNSUPPORTED = {'CornerHead': _CORNER, 'CentripetalHead': _CORNER}


@pytest.mark.parametrize('name', UNSUPPORTED)
def test_heads_with_another_loss_are_refused(name):
    init_default_scope('mmdet')
    config = dict(type=name, **copy.deepcopy(UNSUPPORTED[name]))
    MODELS.build(copy.deepcopy(config))  # by itself it builds
    with pytest.raises(
        UnsupportedHeadError,
        match=rf'{name}\b.*expected .*Head.*'
        rf"dict\(type='{name}'",
    ):
        MODELS.build(dict(type='lt_mm.LossTransformHead', head=config))


def _renamed(kind, name, without=(), **changes):
    config = {key: value for key, value in HEADS[kind].items() if key not in without}
    return dict(config, type=name, **changes)


# Only their layers differ from those of a known head; and the inputs of their ``loss``.
ALIKE = {
    'RetinaSepBNHead': ('RetinaNet', dict(num_ins=2, norm_cfg=dict(type='BN')), ()),
    'NASFCOSHead': ('FCOS', {}, ('stacked_convs',)),
    'ConditionalDETRHead': (
        'Deformable DETR',
        {},
        ('num_pred_layer', 'as_two_stage', 'share_pred_layer'),
    ),
    'DABDETRHead': ('Deformable DETR', {}, ('num_pred_layer', 'as_two_stage', 'share_pred_layer')),
}


@pytest.mark.parametrize('name', ALIKE)
def test_heads_that_change_only_their_layers(name):
    init_default_scope('mmdet')
    kind, changes, without = ALIKE[name]
    head = MODELS.build(
        dict(
            type='lt_mm.LossTransformHead',
            rho=1.0,
            head=_renamed(kind, name, without, **copy.deepcopy(changes)),
        )
    )
    head.init_weights()
    inputs = made_inputs(kind, 2)
    if kind == 'Deformable DETR':  # one set of references: for all layers, or for each
        hidden, references = inputs
        inputs = (
            hidden,
            references[0][..., :2]
            if name == 'ConditionalDETRHead'
            else torch.stack(references[1:]),
        )
    losses = head.loss(*inputs, [det_sample(3), det_sample(3, flip=True)])
    assert losses['lt_num_paired'] >= 4
    assert losses['loss_lt_cls'] > 0 and losses['loss_lt_bbox'] > 0
    total(losses).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in head.parameters()
    )


# ---------------------------------------------------------------------------
# Whole detectors
# ---------------------------------------------------------------------------

DETECTORS = {
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'DETR': 'detr/detr_r50_8xb2-150e_coco.py',
    'Deformable DETR': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'DINO': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
}
_TINY = dict(
    depth=18,
    feedforward_channels=32,
    fc_out_channels=16,
    num_heads=4,
    num_groups=4,
    num_layers=2,
    num_queries=20,
    num_dn_queries=4,
    stacked_convs=1,
    num_classes=CLASSES,
    frozen_stages=-1,
    init_cfg=None,
    nms_pre=50,
    max_per_img=20,
)
# Channels of the stages of ResNet-50, and of the narrow ResNet-18.
_STAGES = {256: 4, 512: 8, 1024: 16, 2048: 32}


def tiny(config, width):
    """A stock model config with few and narrow layers, without pretrained weights."""
    if isinstance(config, (list, tuple)):
        return [tiny(value, width) for value in config]
    if not isinstance(config, dict):
        return config
    sizes = dict(
        _TINY, embed_dims=width, out_channels=width, feat_channels=width, num_feats=width // 2
    )
    small = {key: sizes.get(key, tiny(value, width)) for key, value in config.items()}
    channels = small.get('in_channels')
    if isinstance(channels, list):
        small['in_channels'] = [_STAGES[count] for count in channels]
    elif channels:
        small['in_channels'] = width
    if small.get('type') == 'ResNet':
        small['base_channels'] = 4
    if 'DETRHead' in small.get('type', '') or small.get('type') == 'DINOHead':
        small['embed_dims'] = width
    return small


def detector(name, **options):
    """The stock detector, tiny; its heads wrapped where there are options."""
    init_default_scope('mmdet')
    # MMDetection 3.3 encodes the queries of DINO in 256 channels, whatever its width.
    config = tiny(
        get_config(f'mmdet::{DETECTORS[name]}').model.to_dict(), width=256 if name == 'DINO' else 32
    )
    for head in ('bbox_head', 'rpn_head', 'roi_head'):
        if options and head in config:
            config[head] = dict(type='lt_mm.LossTransformHead', head=config[head], **options)
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config))
    # Until then the level embeddings of Deformable DETR and DINO are whatever was in memory.
    model.init_weights()
    return model.train()


@pytest.mark.parametrize('name', DETECTORS)
def test_whole_detectors(name):
    samples = [det_sample(3), det_sample(3, flip=True)]
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=SHAPE))
    images = torch.randn(1, 3, *SHAPE).repeat(2, 1, 1, 1)
    images[1] = images[1].flip(-1)
    plain, wrapped = detector(name), detector(name, rho=1.0)
    wrapped.load_state_dict(plain.state_dict(), strict=True)
    losses = []
    for model in (plain, wrapped):
        seed_samplers()
        losses.append(model.loss(images, copy.deepcopy(samples)))
    expected, found = losses
    for (key, theirs), (_, mine) in zip(
        values_of(expected), values_of({key: found[key] for key in expected})
    ):
        assert torch.equal(mine, theirs), key
    terms = {key for key in found if 'lt_' in key}
    assert terms == set(found) - set(expected)
    of_roi = {
        'loss_lt_cls',
        'loss_lt_bbox',
        'lt_kl_cls',
        'lt_kl_bbox',
        'lt_num_paired',
        'lt_num_box_pairs',
        'lt_paired_share',
    }
    of_rpn = {key.replace('lt_', 'rpn_lt_') for key in of_roi}
    assert terms == of_roi | (of_rpn if name == 'Faster R-CNN' else set())
    assert all(found[key] > 0 for key in terms)
    total(found).backward()
    assert all(
        parameter.grad.isfinite().all()
        for parameter in wrapped.parameters()
        if parameter.grad is not None
    )
