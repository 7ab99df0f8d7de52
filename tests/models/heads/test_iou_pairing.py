"""pairing='iou': confident predictions that overlap in the source, without annotations."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import bbox2roi

from lt_mm.structures.errors import MissingRecordError
from tests import reference
from tests import reference_losses as twin
from tests.models.heads import dense_data
from tests.models.heads.head_data import (
    FLIP,
    ZOOM,
    build_roi_head,
    det_sample,
    mask_roi_head_config,
    roi_head_config,
    roi_losses,
    sampled_rois,
    total,
)
from tests.models.heads.iou_reference import OPTIONS, naive_groups, naive_terms
from tests.models.heads.zoo_kinds import KINDS


def replicas():
    """Three replicas of source 3, one of source 5, two of source 8."""
    samples = [
        det_sample(3),
        det_sample(5),
        det_sample(3, flip=True),
        det_sample(8),
        det_sample(3, view=ZOOM),
        det_sample(8, view=FLIP @ ZOOM),
    ]
    for sample in samples:
        sample.gt_instances.set_metainfo(dict(source_matrix=sample.source_matrix))
    return samples


def check(losses, keys, terms, leaves):
    """The losses and their gradients against the naive ones."""
    cls_term, box_term, groups = terms
    paired = sum(groups.count(group) > 1 for group in groups)
    assert paired >= 6 and len({g for g in groups if groups.count(g) > 1}) >= 3
    assert losses[keys[2]] == paired
    torch.testing.assert_close(losses[keys[3]], torch.tensor(paired / len(groups)))
    for key, term in zip(keys[:2], (cls_term, box_term)):
        assert term > 1e-5
        torch.testing.assert_close(losses[key].double(), term, rtol=1e-4, atol=1e-7)
    found = torch.autograd.grad(
        losses[keys[0]] + losses[keys[1]], leaves, retain_graph=True, allow_unused=True
    )
    expected = torch.autograd.grad(cls_term + box_term, leaves, allow_unused=True)
    for mine, theirs in zip(found, expected):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


KEYS = ('loss_lt_cls', 'loss_lt_bbox', 'lt_num_paired', 'lt_paired_share')


@pytest.mark.parametrize('sigmoid', [False, True], ids=['softmax', 'sigmoid'])
def test_box_head_against_a_naive_loop(sigmoid):
    config = roi_head_config(loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=sigmoid))
    options = dict(OPTIONS, max_candidates=20, iou_threshold=0.2)
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, **options))
    samples = replicas()
    losses, _ = roi_losses(head, samples)
    features, results = sampled_rois(head, samples)
    counts = [len(result.priors) for result in results]
    predicted = head._bbox_forward(features, bbox2roi([r.priors for r in results]))
    logits = predicted['cls_score'].split(counts)
    deltas = predicted['bbox_pred'].split(counts)

    def decode(image, row, label):
        own = deltas[image][row].view(-1, 4)[label]
        return head.bbox_head.bbox_coder.decode(results[image].priors[row][None], own[None])[0]

    terms = naive_terms(head.bbox_head, logits, decode, samples, sigmoid, sum(counts), options)
    check(losses, KEYS, terms, list(head.bbox_head.parameters()))


@pytest.mark.parametrize('kind', ['RetinaNet', 'FCOS', 'SSD', 'YOLOX', 'DETR', 'DINO'])
def test_dense_heads_against_a_naive_loop(kind):
    """Decoding is compared elsewhere; here the mixin's own decoder is read one by one."""
    options = dict(
        OPTIONS,
        max_candidates=25,
        iou_threshold=0.1,
        score_threshold=dense_data.score_threshold(kind),
    )
    head = dense_data.build(kind, **options)
    samples = replicas()
    outputs, leaves = dense_data.made_outputs(kind, head, len(samples))
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
        return detections.decode(torch.tensor([image * count + row]), torch.tensor([label]))[0]

    positives = sum(len(rows) for rows in detections.positives)
    terms = naive_terms(
        head,
        detections.logits.split(detections.counts),
        decode,
        samples,
        detections.sigmoid,
        positives,
        options,
        dense_data.score_factors(kind, outputs),
    )
    check(losses, KEYS, terms, leaves[:2] if kind in dense_data.DETR_LIKE else leaves)


@pytest.mark.parametrize(
    'kind',
    [
        *('RetinaNet', 'ATSS', 'FCOS', 'YOLOX', 'RTMDet'),
        *('DDOD', 'PAA', 'LAD', 'AutoAssign', 'YOLOv3', 'CondInst', 'TOOD'),
    ],
)
def test_confidence_is_the_score_that_the_stock_head_predicts(kind):
    """Class scores times objectness, centerness or IoU: the best detection of each image."""
    samples = replicas()
    zoo = KINDS.get(kind)
    head = zoo.build(rho=1.0) if zoo else dense_data.build(kind, rho=1.0)
    outputs, _ = zoo.outputs(head, 6) if zoo else dense_data.made_outputs(kind, head, 6)
    seen = []
    head.lt_add_terms = lambda detections, losses: seen.append(detections)
    (zoo.losses if zoo else partial(dense_data.losses_of, kind))(head, outputs, samples)
    scores, _ = head._lt_confidence(seen[0])
    stock = (zoo.build() if zoo else dense_data.build(kind)).eval()
    metas = [sample.metainfo for sample in samples]
    with torch.no_grad():
        predicted = stock.predict_by_feat(*outputs, batch_img_metas=metas, rescale=False)
    for own, theirs in zip(scores.split(seen[0].counts), predicted, strict=True):
        torch.testing.assert_close(own.max(), theirs.scores.max())


def test_masks_against_a_naive_pairing():
    config = mask_roi_head_config()
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, **OPTIONS))
    samples = replicas()
    _, results = sampled_rois(head, samples)
    records = []
    head.mask_head.lt_recorder = records.append
    losses, _ = roi_losses(head, samples)
    (record,) = records
    images = []
    for result, sample in zip(results, samples):
        back = reference.inverse(sample.source_matrix)
        images.append(
            (
                sample.source_id,
                [reference.move_box(box, back).tolist() for box in result.pos_priors],
                result.pos_gt_labels.tolist(),
            )
        )
    expected = naive_groups(images, OPTIONS['iou_threshold'])
    assert twin.same_partition(record.group_ids) == twin.same_partition(expected)
    restored = [box for _, own, _ in images for box in own]
    np.testing.assert_allclose(record.restored, restored, atol=1e-4)
    assert losses['loss_lt_mask'] > 0
    total(losses).backward()


def _losses(head, samples):
    """The losses of the same made predictions."""
    outputs, _ = dense_data.made_outputs('RetinaNet', head, len(samples))
    return dense_data.losses_of('RetinaNet', head, outputs, samples)


def test_annotations_do_not_form_the_pairs():
    head = dense_data.build('RetinaNet', **OPTIONS)
    samples, others = replicas(), replicas()
    for sample in others:
        gt = sample.gt_instances
        gt.labels = (gt.labels + 1) % 3
        gt.source_ids = gt.source_ids.flip(0)
        gt.visibility[:] = 0
        gt.source_matrices[:] = torch.eye(3, dtype=torch.float64)
    losses, changed = _losses(head, samples), _losses(head, others)
    assert losses['lt_num_paired'] == changed['lt_num_paired'] > 0
    for key in ('loss_lt_cls', 'loss_lt_bbox'):
        torch.testing.assert_close(losses[key], changed[key])
    assert dense_data.total(losses) != dense_data.total(changed)


def test_an_image_without_a_matrix_of_its_own():
    """As Mosaic leaves it."""
    head, samples = dense_data.build('RetinaNet', **OPTIONS), replicas()
    samples[1].gt_instances.set_metainfo(dict(source_matrix=None))
    with pytest.raises(MissingRecordError, match="pairing='gt'"):
        _losses(head, samples)


@pytest.mark.parametrize(
    'change',
    [dict(score_threshold=1.0), dict(iou_threshold=1.0)],
    ids=['no confident prediction', 'no overlap'],
)
def test_without_pairs_the_terms_are_zero_with_a_graph(change):
    head = dense_data.build('RetinaNet', **{**OPTIONS, **change})
    samples = replicas()
    outputs, leaves = dense_data.made_outputs('RetinaNet', head, len(samples))
    losses = dense_data.losses_of('RetinaNet', head, outputs, samples)
    assert losses['lt_num_paired'] == 0 and losses['lt_paired_share'] == 0
    term = losses['loss_lt_cls'] + losses['loss_lt_bbox']
    assert term == 0
    grads = torch.autograd.grad(term, leaves, retain_graph=True)
    assert all((grad == 0).all() for grad in grads)
    dense_data.total(losses).backward()


def test_images_without_annotations_pair_too():
    head = dense_data.build('RetinaNet', **OPTIONS)
    samples = [det_sample(3, instances=()), det_sample(3, flip=True, instances=())]
    for sample in samples:
        sample.gt_instances.set_metainfo(dict(source_matrix=sample.source_matrix))
    outputs, _ = dense_data.made_outputs('RetinaNet', head, 2)
    mirrored = dense_data.mirrored('RetinaNet', head, outputs)
    losses = dense_data.losses_of('RetinaNet', head, mirrored, samples)
    assert losses['lt_num_paired'] == 2 * OPTIONS['max_candidates']
    # The same predictions in a mirror, so nothing is to be pulled together.
    assert losses['loss_lt_cls'].abs() < 1e-5 and losses['loss_lt_bbox'].abs() < 1e-5


def test_copies_pair_alike():
    config = roi_head_config()
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, **OPTIONS))
    mine, theirs = (roi_losses(one, replicas())[0] for one in (head, copy.deepcopy(head)))
    for key, value in mine.items():
        assert torch.equal(theirs[key], value), key
