"""Unlabelled images in the batch: the stock loss does not see them, the term does."""

import copy

import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError, UnsupportedHeadError
from tests.models.heads import dense_data
from tests.models.heads.head_data import (
    FLIP,
    ZOOM,
    build_cls_head,
    build_roi_head,
    cascade_config,
    cls_samples,
    det_sample,
    mask_roi_head_config,
    roi_inputs,
    sampled_rois,
    total,
)
from tests.models.heads.iou_reference import naive_terms

# Labelled images, each once, between the replicas of two unlabelled ones.
LABELLED = [0, 3]
UNLABELLED = [1, 2, 4, 5]
IOU = dict(iou_threshold=0.1, score_threshold=0.5, max_candidates=25)
LINEAR = dict(
    type='LinearClsHead', num_classes=3, in_channels=5, loss=dict(type='CrossEntropyLoss')
)
SIGMOID = dict(
    type='LinearClsHead',
    num_classes=3,
    in_channels=5,
    loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
)


def marked(sample, **facts):
    """A sample whose record says something more."""
    for holder in (sample, sample.get('gt_instances')):
        if holder is not None:
            holder.set_metainfo(facts)
    return sample


def batch():
    samples = [
        det_sample(3),
        det_sample(5, instances=()),
        det_sample(5, instances=(), flip=True),
        det_sample(4, view=ZOOM),
        det_sample(8, instances=(), view=FLIP @ ZOOM),
        det_sample(8, instances=()),
    ]
    for image, sample in enumerate(samples):
        is_labelled = image in LABELLED
        marked(sample, is_labelled=is_labelled, num_replicas=1 if is_labelled else 2)
    return samples


def picked(values, images):
    return [values[image] for image in images]


def picked_outputs(kind, outputs, images):
    """The raw predictions for some images."""
    if kind in dense_data.DETR_LIKE:
        return tuple(
            value[:, images] if place < 2 else value[images] for place, value in enumerate(outputs)
        )
    return tuple([level[images] for level in levels] for levels in outputs)


@pytest.mark.parametrize('kind', dense_data.HEADS)
def test_the_stock_losses_of_dense_heads_are_those_of_the_labelled_images(kind):
    """Bit for bit, with their gradients; nothing but the term reaches the other images."""
    options = dict(IOU, score_threshold=dense_data.score_threshold(kind))
    plain, head = dense_data.build(kind), dense_data.build(kind, rho=1.0, **options)
    outputs, leaves = dense_data.made_outputs(kind, head, 6)
    expected = dense_data.losses_of(
        kind, plain, picked_outputs(kind, outputs, LABELLED), picked(batch(), LABELLED)
    )
    losses = dense_data.losses_of(kind, head, outputs, batch())
    stock = {key: losses[key] for key in expected}
    for (key, theirs), (_, mine) in zip(
        dense_data.values_of(expected), dense_data.values_of(stock)
    ):
        assert torch.equal(mine, theirs), key
    known = dict(allow_unused=True, retain_graph=True)
    wanted = torch.autograd.grad(dense_data.total(expected), leaves, **known)
    found = torch.autograd.grad(dense_data.total(stock), leaves, **known)
    for mine, theirs in zip(found, wanted):
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    prefix = 'rpn_' if kind == 'RPN' else ''
    assert losses[f'{prefix}lt_num_paired'] == losses[f'{prefix}lt_num_unlabelled_paired'] > 0
    term = losses[f'loss_{prefix}lt_cls'] + losses[f'loss_{prefix}lt_bbox']
    scores = leaves[: len(leaves) // 2]
    for gradient in torch.autograd.grad(term, scores):
        images = gradient.unbind(dim=1 if kind in dense_data.DETR_LIKE else 0)
        assert all((images[image] == 0).all() for image in LABELLED)
    assert term > 0


@pytest.mark.parametrize('kind', ['RetinaNet', 'FCOS', 'YOLOX', 'DETR', 'DINO'])
def test_the_terms_of_dense_heads_against_a_naive_loop(kind):
    """Unlabelled images pair as with 'iou'; n is that of a batch that is labelled throughout."""
    options = dict(IOU, score_threshold=dense_data.score_threshold(kind))
    head = dense_data.build(kind, rho=1.0, **options)
    samples = batch()
    outputs, leaves = dense_data.made_outputs(kind, head, 6)
    seen = []
    add_terms = head.lt_add_terms
    head.lt_add_terms = lambda detections, losses: (
        seen.append(detections),
        add_terms(detections, losses),
    )
    losses = dense_data.losses_of(kind, head, outputs, samples)
    (detections,) = seen
    count = detections.counts[0]

    def decode(image, row, label):
        row = torch.tensor([UNLABELLED[image] * count + row])
        return detections.decode(row, torch.tensor([label]))[0]

    positives = sum(len(rows) for rows in detections.positives)
    assert positives > 0 and all(len(detections.positives[image]) == 0 for image in UNLABELLED)
    cls_term, box_term, groups = naive_terms(
        head,
        picked(detections.logits.split(detections.counts), UNLABELLED),
        decode,
        picked(samples, UNLABELLED),
        detections.sigmoid,
        positives * 6 / 2,
        options,
        dense_data.score_factors(kind, picked_outputs(kind, outputs, UNLABELLED)),
    )
    paired = sum(groups.count(group) > 1 for group in groups)
    assert losses['lt_num_unlabelled_paired'] == paired > 6
    assert losses['lt_num_unlabelled_confident'] == len(groups)
    leaves = leaves[:2] if kind in dense_data.DETR_LIKE else leaves
    for key, term in (('loss_lt_cls', cls_term), ('loss_lt_bbox', box_term)):
        torch.testing.assert_close(losses[key].double(), term, rtol=1e-4, atol=1e-7)
        found = torch.autograd.grad(losses[key], leaves, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
        for mine, theirs in zip(found, expected):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('pairing', ['gt', 'gt_score', 'gt_mean', 'gt_all'])
def test_labelled_groups_pair_by_annotation_beside_unlabelled_ones(pairing):
    """Each part has the pairs that it has alone; the terms add up."""
    samples = [
        det_sample(3),
        det_sample(3, flip=True),
        *(marked(each, is_labelled=False) for each in batch()[4:]),
    ]
    for sample in samples:
        marked(sample, num_replicas=2)
    head = dense_data.build('RetinaNet', rho=1.0, pairing=pairing, **IOU)
    outputs, _ = dense_data.made_outputs('RetinaNet', head, 4)
    losses = dense_data.losses_of('RetinaNet', head, outputs, samples)
    first, rest = (picked_outputs('RetinaNet', outputs, own) for own in ([0, 1], [2, 3]))
    labelled = dense_data.losses_of('RetinaNet', head, first, samples[:2])
    by_iou = dense_data.build('RetinaNet', rho=1.0, pairing='iou', **IOU)
    unlabelled = dense_data.losses_of(
        'RetinaNet', by_iou, rest, [marked(each, is_labelled=True) for each in samples[2:]]
    )
    assert losses['lt_num_paired'] == labelled['lt_num_paired'] + unlabelled['lt_num_paired']
    assert losses['lt_num_unlabelled_paired'] == unlabelled['lt_num_paired'] > 0
    torch.testing.assert_close(losses['lt_paired_share'], labelled['lt_paired_share'])
    # Alone, the labelled part is divided by its own n. Images without annotations count as one
    # positive each.
    positives = num_positives(head, first, samples[:2])
    for key in ('loss_lt_cls', 'loss_lt_bbox'):
        expected = labelled[key] / 2 + unlabelled[key] / positives
        torch.testing.assert_close(losses[key], expected, rtol=1e-4, atol=1e-7)
        assert labelled[key] > 0 and unlabelled[key] > 0
    dense_data.total(losses).backward()


def num_positives(head, outputs, samples):
    """The number of positives of the stock loss."""
    seen = []
    head.lt_add_terms = lambda detections, losses: seen.append(detections)
    dense_data.losses_of('RetinaNet', head, outputs, samples)
    del head.lt_add_terms
    return sum(len(rows) for rows in seen[0].positives)


@pytest.mark.parametrize('cascade', [False, True], ids=['StandardRoIHead', 'CascadeRoIHead'])
def test_roi_heads(cascade):
    """Box and mask losses are those of the labelled images, at each stage."""
    config = cascade_config(masks=True) if cascade else mask_roi_head_config()
    plain = build_roi_head(config)
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, rho=1.0, **IOU))
    samples = batch()
    features, proposals = roi_inputs(det_samples_with_objects())
    for own in proposals:
        own.set_metainfo(dict(leaves_out_unlabelled=True))
    torch.manual_seed(0)
    expected = plain.loss(
        tuple(level[LABELLED] for level in features),
        picked(copy.deepcopy(proposals), LABELLED),
        picked(copy.deepcopy(samples), LABELLED),
    )
    torch.manual_seed(0)
    losses = head.loss(features, copy.deepcopy(proposals), copy.deepcopy(samples))
    for key, theirs in expected.items():
        torch.testing.assert_close(losses[key], theirs, rtol=1e-6, atol=0, msg=key)
    stages = ['s0.', 's1.', 's2.'] if cascade else ['']
    for stage in stages:
        assert losses[f'{stage}lt_num_unlabelled_paired'] > 0
        assert losses[f'{stage}loss_lt_cls'] > 0 and losses[f'{stage}loss_lt_bbox'] > 0
        assert losses[f'{stage}loss_lt_mask'] == 0  # masks are known at annotations alone
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def det_samples_with_objects():
    """For the proposals: those of unlabelled images lie at objects too."""
    return [det_sample(3), det_sample(5), det_sample(5, flip=True), det_sample(4, view=ZOOM)] + [
        det_sample(8, view=FLIP @ ZOOM),
        det_sample(8),
    ]


def test_the_most_confident_proposals_of_unlabelled_images_are_compared():
    """As many as the stock sampler takes, without random numbers."""
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=mask_roi_head_config()))
    (sample,) = batch()[1:2]
    sampler = head.bbox_sampler
    proposals = InstanceData(priors=torch.arange(200.0).view(50, 4))
    assigned = head.bbox_assigner.assign(proposals, sample.gt_instances, sample.ignored_instances)
    state = torch.get_rng_state()
    result = sampler.sample(assigned, proposals, sample.gt_instances)
    assert torch.equal(result.priors, proposals.priors[:32])
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unwrapped_region_proposal_network_is_refused():
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=mask_roi_head_config()))
    features, proposals = roi_inputs(det_samples_with_objects())
    with pytest.raises(UnsupportedHeadError, match='rpn_head'):
        head.loss(features, proposals, batch())


def test_a_wrapped_region_proposal_network_says_so():
    rpn = dense_data.build('RPN', rho=0.0)
    samples = dense_data.as_the_head_gets('RPN', batch())
    _, proposals = rpn.loss_and_predict(
        *dense_data.made_inputs('RPN', 6), samples, proposal_cfg=rpn.test_cfg
    )
    assert all(own.leaves_out_unlabelled for own in proposals)


def cls_batch(scores=False):
    samples = cls_samples([3, 5, 5, 4, 8, 8])
    for image, sample in enumerate(samples):
        marked(sample, is_labelled=image in LABELLED, num_replicas=1 if image in LABELLED else 2)
        if scores:
            label = torch.eye(3)[int(sample.gt_label)]
            sample.set_gt_score(label if image in LABELLED else torch.zeros(3))
        if image in UNLABELLED:
            sample.set_gt_label(torch.zeros(0, dtype=torch.int64))
    return samples


def cls_feats():
    leaf = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return leaf, (leaf,)


@pytest.mark.parametrize('config', [LINEAR, SIGMOID], ids=['softmax', 'sigmoid'])
def test_classifiers(config):
    sigmoid = config is SIGMOID
    plain = build_cls_head(config)
    options = dict(rho=2.0, strength='plain')
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=config, **options))
    leaf, feats = cls_feats()
    expected = plain.loss((leaf[LABELLED],), picked(cls_batch(sigmoid), LABELLED))
    logits = plain(feats)
    consistency = bernoulli_consistency if sigmoid else categorical_consistency
    term = consistency(logits, torch.tensor([-1, 5, 5, -1, 8, 8]))
    wanted = torch.autograd.grad(expected['loss'] + 2 * term, leaf)
    losses = head.loss(feats, cls_batch(sigmoid))
    assert torch.equal(losses['loss'], expected['loss'])
    torch.testing.assert_close(losses['loss_lt_cls'], 2 * term)
    torch.testing.assert_close(torch.autograd.grad(total(losses), leaf), wanted)
    assert term > 1e-3
    assert losses['lt_num_paired'] == losses['lt_num_unlabelled_paired'] == 4


def test_classifiers_with_labels_mixed_with_unlabelled_images_are_refused():
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=SIGMOID))
    samples = cls_batch(scores=True)
    samples[0].set_gt_score(0.7 * samples[0].gt_score)  # the rest is an unlabelled image
    for lambdas in (None, 0.7):
        if lambdas is not None:  # by a grouped augment
            for sample in samples:
                sample.set_field(lambdas, 'mix_lambda', field_type='metainfo')
        with pytest.raises(ValueError, match='labelled ones would be mixed'):
            head.loss(cls_feats()[1], samples)


def test_a_batch_without_labels_stops():
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=LINEAR))
    samples = cls_batch()
    for sample in samples:
        marked(sample, is_labelled=False, num_replicas=None)
    with pytest.raises(UnpairedBatchError, match='unlabelled_share'):
        head.loss(cls_feats()[1], samples)


def test_cut_groups_of_unlabelled_images_stop():
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=LINEAR))
    samples = cls_batch()
    with pytest.raises(UnpairedBatchError, match='groups of 2'):
        head.loss((torch.randn(5, 5),), samples[:5])


def test_what_unlabelled_images_do_not_go_with():
    head = dense_data.build('RetinaNet', memory=dict(momentum=0.5))
    outputs, _ = dense_data.made_outputs('RetinaNet', head, 6)
    with pytest.raises(UnsupportedHeadError, match='memory=None'):
        dense_data.losses_of('RetinaNet', head, outputs, batch())
    head = dense_data.build('RetinaNet', across_ranks=True)
    with pytest.raises(UnsupportedHeadError, match='across_ranks=False'):
        dense_data.losses_of('RetinaNet', head, outputs, batch())


# ---------------------------------------------------------------------------
# The stock loss on one copy
# ---------------------------------------------------------------------------


def copies(weak=None):
    """Two sources in three copies each."""
    samples = [
        det_sample(3),
        det_sample(3, flip=True),
        det_sample(3, view=ZOOM),
        det_sample(8, flip=True),
        det_sample(8),
        det_sample(8, view=FLIP @ ZOOM),
    ]
    for image, sample in enumerate(samples):
        marked(sample, num_replicas=3, is_weak=weak is not None and image % 3 == weak)
    return samples


@pytest.mark.parametrize('weak', [None, 1])
@pytest.mark.parametrize('kind', ['RetinaNet', 'GFL', 'FCOS', 'YOLOX', 'DINO', 'RPN'])
def test_the_stock_loss_on_one_copy_of_dense_heads(kind, weak):
    """The terms are those of all copies, as if the stock loss were on all, if n were the same."""
    plain = dense_data.build(kind)
    head = dense_data.build(kind, rho=1.0, supervise='one')
    outputs, leaves = dense_data.made_outputs(kind, head, 6)
    seen = [0, 3] if weak is None else [1, 4]
    expected = dense_data.losses_of(
        kind, plain, picked_outputs(kind, outputs, seen), picked(copies(weak), seen)
    )
    losses = dense_data.losses_of(kind, head, outputs, copies(weak))
    for (key, theirs), (_, mine) in zip(
        dense_data.values_of(expected), dense_data.values_of({key: losses[key] for key in expected})
    ):
        assert torch.equal(mine, theirs), key
    if kind == 'RPN':  # its sampler draws others for the copies
        return
    everywhere = dense_data.build(kind, rho=1.0)
    reference = dense_data.losses_of(kind, everywhere, outputs, copies(weak))
    for key in ('loss_lt_cls', 'loss_lt_bbox', 'lt_num_paired'):
        torch.testing.assert_close(losses[key], reference[key])
    wanted, found = (
        torch.autograd.grad(own['loss_lt_cls'] + own['loss_lt_bbox'], leaves, allow_unused=True)
        for own in (reference, losses)
    )
    for mine, theirs in zip(found, wanted):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


def test_the_stock_loss_on_one_copy_of_roi_heads():
    config = mask_roi_head_config()
    plain = build_roi_head(config)
    head = build_roi_head(
        dict(type='lt_mm.LossTransformHead', head=config, rho=1.0, supervise='one')
    )
    features, results = sampled_rois(head, copies())
    rois = bbox2roi([each.priors for each in results])
    counts = [len(each.priors) for each in results]
    rows = [row for image in (0, 3) for row in range(sum(counts[:image]), sum(counts[: image + 1]))]
    predicted = head._bbox_forward(features, rois)
    mine = head.bbox_head.loss_and_target(
        predicted['cls_score'], predicted['bbox_pred'], rois, results, head.train_cfg
    )
    theirs = plain.bbox_head.loss_and_target(
        predicted['cls_score'][rows],
        predicted['bbox_pred'][rows],
        rois[rows],
        picked(results, (0, 3)),
        head.train_cfg,
    )
    for key, value in theirs['loss_bbox'].items():
        assert torch.equal(mine['loss_bbox'][key], value), key
    every = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, rho=1.0))
    reference = every.bbox_head.loss_and_target(
        predicted['cls_score'], predicted['bbox_pred'], rois, results, head.train_cfg
    )
    for key in ('loss_lt_cls', 'loss_lt_bbox', 'lt_num_paired'):
        torch.testing.assert_close(mine['loss_bbox'][key], reference['loss_bbox'][key])
    assert len(mine['bbox_targets'][0]) == len(rois)
    instances = [sample.gt_instances for sample in copies()]
    masks = torch.randn(sum(len(each.pos_priors) for each in results), 3, 6, 6)
    kept = [
        row
        for row, image in enumerate(
            image for image, each in enumerate(results) for _ in each.pos_priors
        )
        if image in (0, 3)
    ]
    own = head.mask_head.loss_and_target(masks, copy.deepcopy(results), instances, head.train_cfg)
    stock = plain.mask_head.loss_and_target(
        masks[kept],
        picked(copy.deepcopy(results), (0, 3)),
        picked(instances, (0, 3)),
        head.train_cfg,
    )
    assert torch.equal(own['loss_mask']['loss_mask'], stock['loss_mask']['loss_mask'])
    assert own['loss_mask']['loss_lt_mask'] > 0


def test_the_stock_loss_on_one_copy_of_classifiers():
    plain = build_cls_head(LINEAR)
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=LINEAR, supervise='one'))
    samples = cls_samples([3, 3, 3, 8, 8, 8])
    leaf, feats = cls_feats()
    expected = plain.loss((leaf[[0, 3]],), picked(samples, [0, 3]))
    losses = head.loss(feats, samples)
    assert torch.equal(losses['loss'], expected['loss'])
    term = categorical_consistency(plain(feats), torch.tensor([3, 3, 3, 8, 8, 8]))
    torch.testing.assert_close(losses['loss_lt_cls'], term)
    with pytest.raises(ValueError, match='across_ranks=False'):
        build_cls_head(
            dict(type='lt_mm.LossTransformHead', head=LINEAR, supervise='one', across_ranks=True)
        )


# ---------------------------------------------------------------------------
# The prediction for a weak copy as target
# ---------------------------------------------------------------------------


def probabilities(logits, sigmoid):
    return logits.double().sigmoid() if sigmoid else logits.double().softmax(dim=-1)


def divergence(mean, p, sigmoid):
    kl = (mean * (mean / p).log()).sum()
    return kl + ((1 - mean) * ((1 - mean) / (1 - p)).log()).sum() if sigmoid else kl


@pytest.mark.parametrize('config', [LINEAR, SIGMOID], ids=['softmax', 'sigmoid'])
def test_weak_targets_of_classifiers(config):
    """Against a loop; the weak copies get no gradient, and unsure ones are no target."""
    sigmoid = config is SIGMOID
    leaf, feats = cls_feats()
    logits = build_cls_head(config)(feats)
    sure = {weak: float(probabilities(logits[weak].detach(), sigmoid).max()) for weak in (1, 4)}
    chosen = max(sure, key=sure.get)
    weak_target = dict(temperature=0.5, threshold=sum(sure.values()) / 2)
    options = dict(rho=1.0, strength='plain', weak_target=weak_target)
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=config, **options))
    samples = cls_batch(sigmoid)
    for image in (1, 4):
        marked(samples[image], is_weak=True)
    mean = probabilities(logits[chosen].detach() / 0.5, sigmoid)
    term = divergence(mean, probabilities(logits[chosen + 1], sigmoid), sigmoid) / 6
    losses = head.loss(feats, samples)
    torch.testing.assert_close(losses['loss_lt_cls'].double(), term)
    assert losses['lt_num_paired'] == losses['lt_num_unlabelled_paired'] == 1
    (found,) = torch.autograd.grad(losses['loss_lt_cls'], leaf, retain_graph=True)
    (wanted,) = torch.autograd.grad(term, leaf)
    torch.testing.assert_close(found, wanted)
    assert not found[[image for image in range(6) if image != chosen + 1]].any()
    total(losses).backward()


@pytest.mark.parametrize('kind', ['RetinaNet', 'FCOS', 'GFL', 'DINO'])
def test_weak_targets_of_dense_heads(kind):
    """Confident boxes of the weak copy are targets of the boxes that overlap most."""
    threshold = 0.35 if kind in dense_data.FACTORED else 0.55
    options = dict(IOU, weak_target=dict(temperature=0.5, threshold=threshold))
    head = dense_data.build(kind, rho=1.0, **options)
    samples = batch()
    for image in (1, 4):
        marked(samples[image], is_weak=True)
    outputs, leaves = dense_data.made_outputs(kind, head, 6)
    records = []
    head.lt_recorder = records.append
    losses = dense_data.losses_of(kind, head, outputs, samples)
    (record,) = records
    assert 0 < losses['lt_num_unlabelled_paired'] == losses['lt_num_paired']
    images = record.images[record.paired].tolist()
    assert set(images) <= {2, 5}
    weak = torch.tensor([image in (1, 4) for image in record.images.tolist()])
    assert (record.scores[weak] >= threshold).all()
    # Each has one weak partner, of the same source.
    for source, group in zip(record.source_ids[record.paired], record.group_ids[record.paired]):
        same = (record.group_ids == group) & weak
        assert same.sum() == 1 and record.source_ids[same] == source
    term = losses['loss_lt_cls'] + losses['loss_lt_bbox']
    assert losses['loss_lt_cls'] > 0 and losses['loss_lt_bbox'] > 0
    for gradient in torch.autograd.grad(term, leaves, allow_unused=True):
        if gradient is not None:
            own = gradient.unbind(dim=1 if kind in dense_data.DETR_LIKE else 0)
            assert all((own[image] == 0).all() for image in (0, 1, 3, 4))


def test_weak_targets_need_weak_copies():
    head = build_cls_head(dict(type='lt_mm.LossTransformHead', head=LINEAR, weak_target={}))
    with pytest.raises(MissingRecordError, match='0 are weak'):
        head.loss(cls_feats()[1], cls_batch())
    for options in (
        dict(memory=dict(momentum=0.5)),
        dict(across_ranks=True),
        dict(pairing='gt_all'),
    ):
        with pytest.raises(ValueError, match='weak_target'):
            build_cls_head(
                dict(type='lt_mm.LossTransformHead', head=LINEAR, weak_target={}, **options)
            )
    for wrong in (dict(temperature=0), dict(threshold=1.0)):
        with pytest.raises(ValueError, match='weak_target'):
            build_cls_head(dict(type='lt_mm.LossTransformHead', head=LINEAR, weak_target=wrong))


@pytest.mark.parametrize('kind', ['classifier', 'RetinaNet'])
def test_a_threshold_that_nothing_passes_is_said_aloud(kind, monkeypatch):
    said = []
    monkeypatch.setattr('lt_mm.models.heads.empty_terms._INTERVAL', 3)
    monkeypatch.setattr(
        'lt_mm.models.heads.empty_terms.print_log', lambda message, **_: said.append(message)
    )
    weak_target = dict(threshold=0.999)
    if kind == 'classifier':
        config = dict(type='lt_mm.LossTransformHead', head=LINEAR, weak_target=weak_target)
        head, samples = build_cls_head(config), cls_batch()
    else:
        head, samples = dense_data.build(kind, weak_target=weak_target, rho_bbox=0.0), batch()
        outputs, _ = dense_data.made_outputs(kind, head, 6)
    for image in (1, 4):
        marked(samples[image], is_weak=True)
    for step in range(7):
        assert len(said) == (step >= 3)
        if kind == 'classifier':
            losses = head.loss(cls_feats()[1], samples)
        else:
            losses = dense_data.losses_of(kind, head, outputs, samples)
            assert losses['lt_num_unlabelled_confident'] == 0
        assert losses['lt_num_unlabelled_paired'] == 0
    (message,) = said
    assert 'loss_lt_cls has weight' in message and 'weak_target.threshold' in message
