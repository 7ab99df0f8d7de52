"""LossTransformHead on MMDetection's RoI heads: contracts with the stock, pairing."""

import copy
import pickle
from collections import Counter
from functools import partial

import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import DIIHead, Shared2FCBBoxHead
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from lt_mm.core.consistency import bernoulli_consistency, box_consistency, categorical_consistency
from lt_mm.models.heads import wrap_head
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError, UnsupportedHeadError
from tests import reference_losses as twin
from tests.models.heads.head_data import (
    STAGE_WEIGHTS,
    build_roi_head,
    cascade_config,
    det_sample,
    mask_roi_head_config,
    rcnn_train_cfg,
    roi_head_config,
    roi_inputs,
    roi_losses,
    sampled_rois,
    to_source,
    total,
)

SIGMOID = dict(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True))
KINDS = {
    'softmax': {},
    'sigmoid': SIGMOID,
    'class-agnostic': dict(reg_class_agnostic=True),
    'decoded regression': dict(reg_decoded_bbox=True, loss_bbox=dict(type='GIoULoss')),
    'convolutions': dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=8),
}


def replicas():
    """Two replicas of source 3, one mirrored, and two of source 8, one with a loss."""
    return [
        det_sample(3),
        det_sample(3, flip=True),
        det_sample(8, instances=(0,)),
        det_sample(8, flip=True),
    ]


def wrapped(kind='softmax', roi=True, **options):
    config, options = roi_head_config(**KINDS[kind]), {'strength': 'plain', **options}
    if roi:
        return build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, **options))
    config['bbox_head'] = dict(type='lt_mm.LossTransformHead', head=config['bbox_head'], **options)
    return build_roi_head(
        config, dict(type='lt_mm.SourceTrackingSampler', sampler=rcnn_train_cfg().sampler)
    )


def stock(kind='softmax'):
    return build_roi_head(roi_head_config(**KINDS[kind]))


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'bbox_head'])
@pytest.mark.parametrize('kind', KINDS)
def test_identity_of_the_stock_head(kind, roi):
    plain, head = stock(kind), wrapped(kind, roi)
    assert isinstance(head, type(plain))
    assert isinstance(head.bbox_head, type(plain.bbox_head))
    assert list(head.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in head.named_parameters()] == [n for n, _ in plain.named_parameters()]
    head.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(head.state_dict(), strict=True)
    samples = replicas()
    features, proposals = roi_inputs(samples)
    with torch.no_grad():
        for mine, theirs in zip(
            head.predict(features, proposals, samples), plain.predict(features, proposals, samples)
        ):
            assert len(theirs) and torch.equal(mine.bboxes, theirs.bboxes)
            assert torch.equal(mine.scores, theirs.scores)


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'bbox_head'])
@pytest.mark.parametrize('kind', KINDS)
def test_rho_zero_is_the_stock_loss_bit_for_bit(kind, roi):
    plain, head = stock(kind), wrapped(kind, roi, rho=0)
    expected, leaf = roi_losses(plain, replicas())
    losses, other_leaf = roi_losses(head, replicas())
    total(expected).backward()
    total(losses).backward()
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    assert torch.equal(other_leaf.grad, leaf.grad)
    for mine, theirs in zip(head.parameters(), plain.parameters()):
        assert torch.equal(mine.grad, theirs.grad)
    assert losses['loss_lt_cls'] == 0 and losses['lt_kl_bbox'] > 0


def _predictions_and_record(head, samples, stage=None):
    """What the head predicts on the RoIs that its sampler draws, and their sources."""
    features, results = sampled_rois(head, samples, stage=stage)
    rois = bbox2roi([result.priors for result in results])
    forward = head._bbox_forward if stage is None else partial(head._bbox_forward, stage)
    predicted = forward(features, rois)
    record = []  # per RoI: (image, source, instance, label, prior, matrix) or None
    for image, (result, sample) in enumerate(zip(results, samples)):
        gt = sample.gt_instances
        for prior, index in zip(result.pos_priors, result.pos_assigned_gt_inds.tolist()):
            record.append(
                (
                    image,
                    *gt.source_ids[index].tolist(),
                    int(gt.labels[index]),
                    prior,
                    gt.source_matrices[index],
                )
            )
        record += [None] * len(result.neg_priors)
    return predicted['cls_score'], predicted['bbox_pred'], record


def _naive_groups(record):
    images = {}
    for entry in filter(None, record):
        images.setdefault(entry[1:3], set()).add(entry[0])
    names = sorted(name for name, seen in images.items() if len(seen) > 1)
    return torch.tensor(
        [names.index(entry[1:3]) if entry and entry[1:3] in names else -1 for entry in record]
    )


def _naive_restored(bbox_head, bbox_pred, record):
    """Decoded boxes brought back one by one; zeros for the negatives."""
    restored = []
    for deltas, entry in zip(bbox_pred, record):
        if entry is None:
            restored.append(bbox_pred.new_zeros(4))
            continue
        _, _, _, label, prior, matrix = entry
        deltas = deltas if bbox_head.reg_class_agnostic else deltas.view(-1, 4)[label]
        box = bbox_head.bbox_coder.decode(prior[None], deltas[None])[0]
        restored.append(to_source(box, matrix.numpy()).float())
    return torch.stack(restored)


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'bbox_head'])
@pytest.mark.parametrize('kind', KINDS)
def test_terms_against_a_naive_loop(kind, roi):
    plain, head = stock(kind), wrapped(kind, roi, rho_cls=2.0, rho_bbox=0.5, pairing='gt_all')
    losses, _ = roi_losses(head, replicas())
    cls_score, bbox_pred, record = _predictions_and_record(head, replicas())
    groups = _naive_groups(record)
    assert len(groups.unique()) == 4 and (groups >= 0).sum() > 10
    of_kind = bernoulli_consistency if kind == 'sigmoid' else categorical_consistency
    cls_term = of_kind(cls_score, groups)
    box_term = box_consistency(_naive_restored(head.bbox_head, bbox_pred, record), groups)
    torch.testing.assert_close(losses['loss_lt_cls'], 2.0 * cls_term)
    torch.testing.assert_close(losses['loss_lt_bbox'], 0.5 * box_term)
    assert losses['lt_num_paired'] == (groups >= 0).sum()
    expected, _ = roi_losses(plain, replicas())
    assert torch.equal(losses['loss_bbox'], expected['loss_bbox'])
    weights = list(head.parameters())
    found = torch.autograd.grad(
        losses['loss_lt_cls'] + losses['loss_lt_bbox'], weights, allow_unused=True
    )
    reference = torch.autograd.grad(2.0 * cls_term + 0.5 * box_term, weights, allow_unused=True)
    for mine, theirs in zip(found, reference):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_nearest_pairing_keeps_one_prediction_a_replica():
    head = wrapped()
    losses, _ = roi_losses(head, replicas())
    # Source 3 has two instances in two replicas, source 8 one: three groups of two.
    assert losses['lt_num_paired'] == 6
    total(losses).backward()


@pytest.mark.parametrize('reg', [True, False], ids=['boxes', 'no boxes'])
def test_the_nearest_overlaps_its_annotation_most_in_the_replica(reg):
    """Of a head without boxes, the RoIs are ranked."""
    config = roi_head_config(**{} if reg else dict(with_reg=False))
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))
    records = []
    head.bbox_head.lt_recorder = records.append
    losses, _ = roi_losses(head, replicas())
    assert ('loss_lt_bbox' in losses) == reg
    _, bbox_pred, record = _predictions_and_record(head, replicas())
    best, given = {}, []
    annotations = [sample.gt_instances for sample in replicas()]
    for row, entry in enumerate(record):
        if entry is None:
            continue
        image, source, instance, label, box, _ = entry
        if reg:
            deltas = bbox_pred[row].view(-1, 4)[label]
            box = head.bbox_head.bbox_coder.decode(box[None], deltas[None])[0]
        gt = annotations[image]
        (k,) = (gt.source_ids == torch.tensor([source, instance])).all(1).nonzero()[0].tolist()
        # A RoI that is the annotation itself is no prediction of the detector.
        is_given = torch.equal(record[row][4], gt.bboxes[k])
        given.append(is_given)
        distance = twin.distance(box, gt.bboxes[k], is_given)
        key = (source, instance, image)
        if key not in best or distance < best[key][0]:
            best[key] = (distance, box)
    replicas_of = Counter(key[:2] for key in best)
    expected = sorted(key for key in best if replicas_of[key[:2]] > 1)
    assert losses['lt_num_paired'] == len(expected) == 6
    assert any(given) and all(distance < 3 for distance, _ in best.values())
    if reg:
        (found,) = records
        shown = found.boxes[found.paired]
        for key in expected:
            assert (shown - best[key][1]).abs().sum(dim=1).min() < 1e-3


def test_the_one_with_the_highest_score_of_an_annotation_in_a_replica():
    """Without the RoIs that are the annotation itself, where there are others."""
    head = wrapped(rho=1.0, pairing='gt_score')
    losses, _ = roi_losses(head, replicas())
    cls_score, bbox_pred, record = _predictions_and_record(head, replicas())
    annotations = [sample.gt_instances for sample in replicas()]
    groups = _naive_groups(record).tolist()
    distances = []
    for logits, entry in zip(cls_score, record):
        score = float(logits.detach().softmax(0)[:-1].max())
        is_given = False
        if entry is not None:
            gt = annotations[entry[0]]
            is_given = any(torch.equal(entry[4], box) for box in gt.bboxes)
        distances.append(2 * is_given - score)
    images = [entry[0] if entry else -1 for entry in record]
    compared = twin.resort(groups, images, distances)
    restored = _naive_restored(head.bbox_head, bbox_pred, record)
    for name, term in (
        ('cls', twin.categorical(cls_score, compared)),
        ('bbox', twin.box(restored, compared)),
    ):
        assert term > 1e-4
        torch.testing.assert_close(losses[f'loss_lt_{name}'].double(), term, rtol=1e-4, atol=1e-6)
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_means_of_replicas_against_a_naive_loop():
    head = wrapped(rho=1.0, pairing='gt_mean')
    losses, _ = roi_losses(head, replicas())
    cls_score, bbox_pred, record = _predictions_and_record(head, replicas())
    groups = _naive_groups(record).tolist()
    images = [entry[0] if entry else -1 for entry in record]
    compared = twin.one_each(groups, images)
    logits = twin.mean_logits(cls_score, False, groups, images)
    boxes = twin.averaged(_naive_restored(head.bbox_head, bbox_pred, record), groups, images)
    for name, term in (
        ('cls', twin.categorical(logits, compared)),
        ('bbox', twin.box(boxes, compared)),
    ):
        assert term > 1e-4
        torch.testing.assert_close(losses[f'loss_lt_{name}'].double(), term, rtol=1e-4, atol=1e-6)
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_the_share_between_replicas_is_logged_where_it_is_not_one():
    losses, _ = roi_losses(wrapped(rho=1.0, pairing='gt_all'), replicas())
    assert not [key for key in roi_losses(wrapped(), replicas())[0] if 'between' in key]
    head = wrapped(rho=1.0, pairing='gt_all')
    cls_score, bbox_pred, record = _predictions_and_record(head, replicas())
    groups = _naive_groups(record).tolist()
    images = [entry[0] if entry else -1 for entry in record]
    means = twin.mean_logits(cls_score, False, groups, images)
    share = twin.categorical(means, groups) / twin.categorical(cls_score, groups)
    assert 0 < share < 1
    torch.testing.assert_close(losses['lt_between_cls'].double(), share, rtol=1e-3, atol=1e-5)
    restored = _naive_restored(head.bbox_head, bbox_pred, record)
    share = twin.box(twin.averaged(restored, groups, images), groups) / twin.box(restored, groups)
    torch.testing.assert_close(losses['lt_between_bbox'].double(), share, rtol=1e-3, atol=1e-5)


def test_paired_share_counts_instances():
    losses, _ = roi_losses(wrapped(), replicas())
    # Instance 1 of source 8 was lost in one replica: 6 of 7 instances have a pair.
    torch.testing.assert_close(losses['lt_paired_share'], torch.tensor(6 / 7))


def test_equal_predictions_of_mirrored_replicas_cost_nothing():
    """A box head that copies its RoI is right in every replica, whatever the flip."""
    head = wrapped(rho=1.0)
    for parameter in head.bbox_head.parameters():
        torch.nn.init.zeros_(parameter)
    samples = [det_sample(3), det_sample(3, flip=True)]
    gts = [sample.gt_instances.bboxes for sample in samples]
    features, _ = roi_inputs(samples)
    proposals = [InstanceData(bboxes=boxes.clone()) for boxes in gts]
    losses = head.loss(features, proposals, samples)
    assert losses['lt_num_paired'] >= 4
    torch.testing.assert_close(losses['loss_lt_bbox'], torch.tensor(0.0), atol=1e-6, rtol=0)
    # The same boxes without the flip in the record are misaligned, and it shows.
    wrong = [det_sample(3), det_sample(3, flip=True)]
    wrong[1].gt_instances.source_matrices[:] = torch.eye(3, dtype=torch.float64)
    features, _ = roi_inputs(samples)
    proposals = [InstanceData(bboxes=boxes.clone()) for boxes in gts]
    assert head.loss(features, proposals, wrong)['loss_lt_bbox'] > 1e-2


def test_hidden_instances_pair_with_nothing():
    samples = [det_sample(3), det_sample(3, flip=True, visibility=0.2)]
    losses, _ = roi_losses(wrapped(min_visibility=0.3), samples)
    assert losses['lt_num_paired'] == 0 and losses['loss_lt_cls'] == 0
    assert roi_losses(wrapped(min_visibility=0.1), samples)[0]['lt_num_paired'] > 0


def test_rotated_instances_stay_out_of_the_box_term_only():
    samples = [det_sample(3), det_sample(3)]
    shear = torch.eye(3, dtype=torch.float64)
    shear[0, 1] = 0.3
    for sample in samples:
        sample.gt_instances.source_matrices = shear.expand(2, 3, 3).clone()
    losses, _ = roi_losses(wrapped(), samples)
    assert losses['loss_lt_bbox'] == 0 and losses['loss_lt_cls'] > 0
    total(losses).backward()


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
def test_without_pairs_the_terms_are_zero_with_a_graph(samples):
    losses, leaf = roi_losses(wrapped(), samples())
    term = losses['loss_lt_cls'] + losses['loss_lt_bbox']
    assert term == 0 and losses['lt_num_paired'] == 0
    term.backward(retain_graph=True)
    assert (leaf.grad == 0).all()
    total(losses).backward()
    assert leaf.grad.isfinite().all()


def test_terms_are_float32_under_autocast():
    head = wrapped()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses, leaf = roi_losses(head, replicas())
    assert losses['loss_lt_cls'].dtype == losses['loss_lt_bbox'].dtype == torch.float32
    total(losses).backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'bbox_head'])
def test_samples_without_a_record(roi):
    samples = replicas()
    for sample in samples:
        del sample.gt_instances.source_matrices
    with pytest.raises(MissingRecordError, match="type='lt_mm.InvertiblePipeline'"):
        roi_losses(wrapped(roi=roi), samples)


def test_two_images_with_one_id():
    """As ConcatDataset gives them, where both data sets count from 0."""
    samples = [det_sample(3), det_sample(3, flip=True)]
    samples[1].gt_instances.set_metainfo(dict(img_path='elsewhere/3.png'))
    with pytest.raises(MissingRecordError, match='sample_idx_offset'):
        roi_losses(wrapped(), samples)


def test_stock_sampler_below_a_wrapped_box_head():
    config = roi_head_config()
    config['bbox_head'] = dict(type='lt_mm.LossTransformHead', head=config['bbox_head'])
    with pytest.raises(MissingRecordError, match='lt_mm.SourceTrackingSampler'):
        roi_losses(build_roi_head(config), replicas())


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'bbox_head'])
def test_batch_augments_that_resize_are_refused(roi):
    samples = replicas()
    samples[0].set_metainfo(dict(img_shape=(128, 192)))
    with pytest.raises(MissingRecordError, match='BatchSyncRandomResize'):
        roi_losses(wrapped(roi=roi), samples)


def test_training_without_replicas_stops():
    head, samples = wrapped(), [det_sample(1), det_sample(2)]
    for _ in range(9):
        roi_losses(head, samples)
    with pytest.raises(UnpairedBatchError, match='GroupedRepeatAugSampler'):
        roi_losses(head, samples)


class BoxHeadWithItsOwnLoss(Shared2FCBBoxHead):
    def loss_and_target(self, *args, **kwargs):
        return super().loss_and_target(*args, **kwargs)


class QueriesWithTheirOwnLoss(DIIHead):
    def loss_and_target(self, *args, **kwargs):
        return super().loss_and_target(*args, **kwargs)


@pytest.mark.parametrize('head', [BoxHeadWithItsOwnLoss, QueriesWithTheirOwnLoss])
def test_box_heads_with_a_loss_of_their_own_are_refused(head):
    with pytest.raises(UnsupportedHeadError, match=f'{head.__name__} has a loss of its own'):
        wrap_head(head())


@pytest.mark.parametrize(
    'kind, config', [('TridentRoIHead', dict(roi_head_config(), num_branch=3, test_branch_idx=1))]
)
def test_roi_heads_that_lose_the_term_are_refused(kind, config):
    with pytest.raises(UnsupportedHeadError, match=f'{kind} .*expected'):
        build_roi_head(dict(type='lt_mm.LossTransformHead', head=dict(config, type=kind)))


HLR = dict(
    type='ScoreHLRSampler',
    num=32,
    pos_fraction=0.25,
    neg_pos_ub=-1,
    add_gt_as_proposals=True,
    k=0.5,
    bias=0.0,
)


def test_pisa():
    """Its RoI head goes past loss_and_target of the box head, with a sampler that gives weights."""
    config = dict(roi_head_config(loss_bbox=dict(type='SmoothL1Loss')), type='PISARoIHead')
    plain = build_roi_head(config, HLR)
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config), HLR)
    expected, _ = roi_losses(plain, replicas())
    losses, features = roi_losses(head, replicas())
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    assert losses['lt_num_paired'] > 4 and losses['lt_kl_bbox'] > 0
    total(losses).backward()
    assert features.grad.isfinite().all()


class PairsSampler(RandomSampler):
    def sample(self, *args, **kwargs):
        return [super().sample(*args, **kwargs)]


def test_a_sampler_that_gives_no_result_is_refused():
    head = wrapped()
    head.bbox_sampler.sampler.__class__ = PairsSampler
    with pytest.raises(UnsupportedHeadError, match='PairsSampler.*expected a sampler'):
        roi_losses(head, replicas())


class ReducedLosses(StandardRoIHead):
    """Keeps of its box head's losses those that it knows."""

    def bbox_loss(self, *args):
        results = super().bbox_loss(*args)
        results['loss_bbox'] = {key: results['loss_bbox'][key] for key in ('loss_cls', 'loss_bbox')}
        return results


def test_roi_head_that_drops_the_term_is_refused_at_the_first_step():
    config = dict(roi_head_config(), type=ReducedLosses)
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))
    with pytest.raises(UnsupportedHeadError, match='loss_lt_cls was not added'):
        roi_losses(head, replicas())


@pytest.mark.parametrize('part', ['bbox_head', 'mask_head'])
def test_one_image_several_times_is_no_replica(part):
    """As the detector of TridentNet gives it to its heads, once for every branch."""
    config = mask_roi_head_config()
    config[part] = dict(type='lt_mm.LossTransformHead', head=config[part])
    head = build_roi_head(
        config, dict(type='lt_mm.SourceTrackingSampler', sampler=rcnn_train_cfg().sampler)
    )
    roi_losses(head, replicas())
    with pytest.raises(UnsupportedHeadError, match='6 images.*TridentNet.*not replicas'):
        roi_losses(head, [det_sample(3), det_sample(4)] * 3)


@pytest.mark.parametrize('kind', ['DoubleHeadRoIHead', 'DynamicRoIHead'])
def test_stock_subclasses_of_the_roi_head(kind):
    config = roi_head_config()
    config['type'] = kind
    if kind == 'DoubleHeadRoIHead':
        config['reg_roi_scale_factor'] = 1.3
        config['bbox_head'] = dict(
            type='DoubleConvFCBBoxHead',
            num_convs=1,
            num_fcs=1,
            in_channels=8,
            conv_out_channels=16,
            fc_out_channels=16,
            roi_feat_size=3,
            num_classes=3,
            bbox_coder=config['bbox_head']['bbox_coder'],
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='SmoothL1Loss'),
        )
    if kind == 'DynamicRoIHead':
        config['bbox_head']['loss_bbox'] = dict(type='SmoothL1Loss')
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))
    if kind == 'DynamicRoIHead':
        from mmengine.config import ConfigDict

        head.train_cfg.dynamic_rcnn = ConfigDict(
            iou_topk=10, beta_topk=5, update_iter_interval=100, initial_iou=0.4, initial_beta=1.0
        )
    losses, _ = roi_losses(head, replicas())
    assert losses['lt_num_paired'] > 4 and losses['loss_lt_bbox'] > 0
    total(losses).backward()


@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))],
    ids=['deepcopy', 'pickle'],
)
def test_copies_are_wrapped_too(copied):
    head = wrapped(rho=3.0)
    twin = copied(head)
    mine, theirs = roi_losses(head, replicas())[0], roi_losses(twin, replicas())[0]
    for key, value in mine.items():
        assert torch.equal(value, theirs[key])


def test_torch_compile():
    head = wrapped()
    expected, _ = roi_losses(head, replicas())
    compiled = torch.compile(head.bbox_head.forward, backend='eager')
    head.bbox_head.forward = compiled
    losses, _ = roi_losses(head, replicas())
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value)


def test_source_tracking_sampler_draws_what_the_stock_one_draws():
    init_default_scope('mmdet')
    config = rcnn_train_cfg().sampler
    plain = TASK_UTILS.build(config)
    tracking = TASK_UTILS.build(dict(type='lt_mm.SourceTrackingSampler', sampler=config))
    head, sample = stock(), det_sample(3)
    results = []
    for sampler in (plain, tracking):
        proposal = roi_inputs([sample])[1][0]
        proposal.priors = proposal.pop('bboxes')
        assigned = head.bbox_assigner.assign(proposal, sample.gt_instances)
        torch.manual_seed(5)
        results.append(sampler.sample(assigned, proposal, sample.gt_instances))
    assert torch.equal(results[0].pos_inds, results[1].pos_inds)
    assert torch.equal(results[0].neg_inds, results[1].neg_inds)
    assert results[1].gt_record is sample.gt_instances


def test_whole_detector_keeps_the_stock_checkpoint():
    init_default_scope('mmdet')
    plain = MODELS.build(Config.fromfile('configs/faster_rcnn_r18_demo.py').model)
    model = MODELS.build(Config.fromfile('configs/faster_rcnn_r18_lt_demo.py').model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)


# ---------------------------------------------------------------------------
# Cascades
# ---------------------------------------------------------------------------

HTC = dict(
    type='HybridTaskCascadeRoIHead',
    mask_head=[
        dict(
            type='HTCMaskHead',
            with_conv_res=stage > 0,
            num_convs=1,
            in_channels=8,
            conv_out_channels=8,
            num_classes=3,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        )
        for stage in range(3)
    ],
)
CASCADES = {
    'Cascade R-CNN': cascade_config(),
    'with masks': cascade_config(masks=True),
    'shared extractor': cascade_config(masks=True, mask_roi_extractor=None),
    'HTC': cascade_config(masks=True, **HTC),
}


def cascade(kind='Cascade R-CNN', wrap='roi_head', **options):
    """The stock cascade where there are no options."""
    config = copy.deepcopy(CASCADES[kind])
    if not options:
        return build_roi_head(config)
    if wrap == 'roi_head':
        return build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, **options))
    config['bbox_head'] = [
        dict(type='lt_mm.LossTransformHead', head=stage, **options) for stage in config['bbox_head']
    ]
    return build_roi_head(
        config, dict(type='lt_mm.SourceTrackingSampler', sampler=rcnn_train_cfg().sampler)
    )


@pytest.mark.parametrize('kind', CASCADES)
def test_identity_of_the_stock_cascade(kind):
    plain, head = cascade(kind), cascade(kind, rho=1.0)
    assert isinstance(head, type(plain))
    assert list(head.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in head.named_parameters()] == [n for n, _ in plain.named_parameters()]
    head.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(head.state_dict(), strict=True)
    samples = replicas()
    found = []
    for model in (head, plain):
        features, proposals = roi_inputs(samples)
        with torch.no_grad():
            found.append(model.eval().predict(features, proposals, samples))
    for mine, theirs in zip(*found):
        assert len(theirs) and torch.equal(mine.bboxes, theirs.bboxes)
        assert torch.equal(mine.scores, theirs.scores)


@pytest.mark.parametrize('kind', CASCADES)
def test_a_cascade_with_rho_zero_is_stock_bit_for_bit(kind):
    plain, head = cascade(kind), cascade(kind, rho=0)
    expected, leaf = roi_losses(plain, replicas())
    losses, other_leaf = roi_losses(head, replicas())
    total(expected).backward()
    total(losses).backward()
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    assert torch.equal(other_leaf.grad, leaf.grad)
    for mine, theirs in zip(head.parameters(), plain.parameters()):
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize('wrap', ['roi_head', 'bbox_head'])
@pytest.mark.parametrize('kind', CASCADES)
def test_every_stage_of_a_cascade_has_its_terms(kind, wrap):
    plain, head = cascade(kind), cascade(kind, wrap, rho=2.0)
    losses, _ = roi_losses(head, replicas())
    kinds = {'cls', 'bbox'}
    if wrap == 'roi_head' and kind != 'Cascade R-CNN':
        kinds.add('mask')
    assert {key for key in losses if 'lt_' in key} == {
        f's{stage}.{key}'
        for stage in range(3)
        for key in [
            'lt_num_paired',
            'lt_num_box_pairs',
            'lt_paired_share',
            *(f'lt_kl_{name}' for name in kinds),
            *(f'loss_lt_{name}' for name in kinds),
        ]
    }
    for stage, weight in enumerate(STAGE_WEIGHTS):
        for name in kinds:
            term = losses[f's{stage}.lt_kl_{name}']
            assert term > 0
            torch.testing.assert_close(losses[f's{stage}.loss_lt_{name}'], 2.0 * weight * term)
    expected, _ = roi_losses(plain, replicas())
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize('whole', [True, False], ids=['roi_head', 'bbox_head'])
def test_scnet(whole):
    """Its RoI head hands on the stock loss of the mask head alone."""
    config = cascade_config(
        masks=True,
        type='SCNetRoIHead',
        mask_head=dict(
            mask_roi_head_config()['mask_head'], type='SCNetMaskHead', conv_to_res=False
        ),
    )
    for stage in config['bbox_head']:
        stage.update(type='SCNetBBoxHead', num_shared_fcs=2)
    plain = build_roi_head(config)
    if whole:
        head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))
    else:
        config['bbox_head'] = [
            dict(type='lt_mm.LossTransformHead', head=stage) for stage in config['bbox_head']
        ]
        head = build_roi_head(
            config, dict(type='lt_mm.SourceTrackingSampler', sampler=rcnn_train_cfg().sampler)
        )
    expected, _ = roi_losses(plain, replicas())
    losses, _ = roi_losses(head, replicas())
    for stage, weight in enumerate(STAGE_WEIGHTS):
        assert losses[f's{stage}.lt_num_paired'] > 4
        for name in ('cls', 'bbox'):
            assert losses[f's{stage}.lt_kl_{name}'] > 0
            torch.testing.assert_close(
                losses[f's{stage}.loss_lt_{name}'], weight * losses[f's{stage}.lt_kl_{name}']
            )
    if whole:
        assert losses['lt_kl_mask'] > 0
        torch.testing.assert_close(
            losses['loss_lt_mask'], sum(STAGE_WEIGHTS) * losses['lt_kl_mask']
        )
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    total(losses).backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize('wrap', ['roi_head', 'bbox_head'])
def test_first_stage_of_a_cascade_against_a_naive_loop(wrap):
    head = cascade('with masks', wrap, rho=1.0, pairing='gt_all')
    losses, _ = roi_losses(head, replicas())
    cls_score, bbox_pred, record = _predictions_and_record(head, replicas(), stage=0)
    groups = _naive_groups(record)
    assert (groups >= 0).sum() == losses['s0.lt_num_paired'] > 10
    torch.testing.assert_close(losses['s0.loss_lt_cls'], categorical_consistency(cls_score, groups))
    restored = _naive_restored(head.bbox_head[0], bbox_pred, record)
    torch.testing.assert_close(losses['s0.loss_lt_bbox'], box_consistency(restored, groups))


@pytest.mark.parametrize('kind', ['Cascade R-CNN', 'with masks'])
def test_a_cascade_without_a_proposal(kind):
    """The stock cascade ends after its first stage then."""
    head = cascade(kind, rho=1.0)
    samples = [det_sample(1, instances=()), det_sample(1, instances=())]
    features, proposals = roi_inputs(samples)
    proposals = [proposal[:0] for proposal in proposals]
    losses = head.loss(features, proposals, samples)
    assert losses['s0.loss_lt_cls'] == losses['s0.loss_lt_bbox'] == 0
    total(losses).backward()
    weights = list(head.bbox_head[0].parameters())
    assert weights and all((weight.grad == 0).all() for weight in weights)


def test_a_cascade_with_a_head_that_cannot_be_wrapped():
    config = copy.deepcopy(CASCADES['Cascade R-CNN'])
    config['bbox_head'][2] = dict(type='MultiInstanceBBoxHead', num_instance=2, num_classes=3)
    with pytest.raises(UnsupportedHeadError, match='MultiInstanceBBoxHead'):
        build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))


@pytest.mark.parametrize('wrap', ['roi_head', 'bbox_head'])
def test_a_cascade_checks_its_samples(wrap):
    head, samples = cascade('with masks', wrap, rho=1.0), replicas()
    samples[0].set_metainfo(dict(img_shape=(128, 192)))
    with pytest.raises(MissingRecordError, match='BatchSyncRandomResize'):
        roi_losses(head, samples)
    del samples[0].gt_instances.source_ids
    samples[0].set_metainfo(dict(img_shape=(64, 96)))
    with pytest.raises(MissingRecordError, match="type='lt_mm.InvertiblePipeline'"):
        roi_losses(head, samples)


def test_a_part_of_a_wrapped_head_can_be_frozen():
    """Two mixins on one RoI head."""
    plain = wrapped('softmax', strength='stock')
    wrap = dict(type='lt_mm.LossTransformHead', head=roi_head_config())
    frozen = build_roi_head(dict(type='lt_mm.Frozen', module=wrap, parts=['bbox_head.shared_fcs']))
    for head in (frozen, copy.deepcopy(frozen)):
        head.load_state_dict(plain.state_dict())
        losses, _ = roi_losses(head, replicas())
        expected, _ = roi_losses(plain, replicas())
        assert losses.keys() == expected.keys() and losses['loss_lt_cls'] > 0
        for key, value in expected.items():
            assert torch.equal(losses[key], value), key
        total(losses).backward()
        assert all(weight.grad is None for weight in head.bbox_head.shared_fcs.parameters())
        assert head.bbox_head.fc_cls.weight.grad.abs().sum() > 0
        assert not head.train().bbox_head.shared_fcs.training and head.bbox_head.fc_cls.training
