"""The term on RoI heads with box heads of their own: Sparse R-CNN, SABL, losses of their own."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from lt_mm.core.consistency import bernoulli_consistency, categorical_consistency
from tests import reference_losses as twin
from tests.models.heads.head_data import (
    SHAPE,
    build_roi_head,
    det_sample,
    roi_head_config,
    roi_losses,
    sampled_rois,
    to_source,
    total,
)

QUERIES, STAGES = 8, 2


def samples():
    return [det_sample(3), det_sample(3, flip=True), det_sample(8), det_sample(8, flip=True)]


def wrap(config, **options):
    return dict(type='lt_mm.LossTransformHead', head=config, strength='plain') | options


# ---------------------------------------------------------------------------
# Losses that make probabilities of the scores themselves
# ---------------------------------------------------------------------------

LOSSES = {
    'SeesawLoss': dict(type='SeesawLoss', num_classes=3, p=0.8, q=2.0),
    'CrossEntropyCustomLoss': dict(
        type='CrossEntropyCustomLoss', use_sigmoid=True, num_classes=3, loss_weight=1.0
    ),
}


@pytest.mark.parametrize('loss', LOSSES)
def test_the_class_term_reads_scores_as_the_loss_does(loss):
    config = roi_head_config(loss_cls=LOSSES[loss])
    plain, head = build_roi_head(config), build_roi_head(wrap(config, rho=1.0))
    assert list(head.state_dict()) == list(plain.state_dict())
    expected, _ = roi_losses(plain, samples())
    found, _ = roi_losses(head, samples())
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    _, sampled = sampled_rois(head, samples())
    count = sum(len(each.priors) for each in sampled)
    columns = head.bbox_head.fc_cls.out_features
    scores = torch.randn(count, columns, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    rois = torch.cat(
        [
            torch.cat([torch.full((len(each.priors), 1), float(image)), each.priors], dim=1)
            for image, each in enumerate(sampled)
        ]
    )
    boxes = torch.zeros(count, 12)
    found = head.bbox_head.loss_and_target(scores, boxes, rois, sampled, head.train_cfg)
    found = found['loss_bbox']['loss_lt_cls']
    groups = _nearest_groups(sampled, samples(), [list(each.pos_priors) for each in sampled])
    probabilities = head.bbox_head.loss_cls.get_activation(scores)
    if loss == 'SeesawLoss':
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(count))
        logits, consistency = probabilities.log(), categorical_consistency
    else:
        logits = (probabilities / (1 - probabilities)).log()[:, :3]
        consistency = bernoulli_consistency
    term = consistency(logits, groups, avg_factor=count)
    assert term > 1e-3
    torch.testing.assert_close(found, term, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(*(torch.autograd.grad(each, scores) for each in (found, term))):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def _nearest_groups(sampled, replicas, boxes):
    """(N,) group of each RoI, one in each replica; boxes are those of the positives."""
    groups = []
    for image, one in enumerate(sampled):
        own = [-1] * len(one.priors)
        gt = replicas[image].gt_instances
        given = one.pos_is_gt.tolist()
        for k in range(len(gt)):
            mine = [
                (bool(given[place]), float(twin.distance(boxes[image][place], gt.bboxes[k])), place)
                for place, assigned in enumerate(one.pos_assigned_gt_inds.tolist())
                if assigned == k
            ]
            if mine:
                own[min(mine)[2]] = 10 * replicas[image].source_id + k
        groups += own
    return torch.tensor(groups)


# ---------------------------------------------------------------------------
# SABL
# ---------------------------------------------------------------------------


def sabl_config():
    config = roi_head_config()
    config['bbox_roi_extractor']['roi_layer']['output_size'] = 7
    config['bbox_head'] = dict(
        type='SABLHead',
        num_classes=3,
        cls_in_channels=8,
        reg_in_channels=8,
        cls_out_channels=16,
        reg_offset_out_channels=8,
        reg_cls_out_channels=8,
        num_cls_fcs=1,
        reg_pre_num=1,
    )
    return config


def test_sabl_heads_decode_their_buckets():
    plain, head = build_roi_head(sabl_config()), build_roi_head(wrap(sabl_config(), rho=1.0))
    assert list(head.state_dict()) == list(plain.state_dict())
    expected, _ = roi_losses(plain, samples())
    losses, features = roi_losses(head, samples())
    for key, value in expected.items():
        assert torch.equal(losses[key], value), key
    total(losses).backward()
    assert features.grad.isfinite().all() and losses['loss_lt_bbox'] > 0
    _, sampled = sampled_rois(head, samples())
    rois = torch.cat([each.pos_priors for each in sampled])
    generator = torch.Generator().manual_seed(0)
    buckets, offsets = (torch.randn(len(rois), 28, generator=generator) for _ in range(2))
    rows = torch.arange(len(rois))
    found = head.bbox_head.lt_decode((buckets, offsets), rois, rows, rows * 0)
    for row in range(len(rois)):
        x1, y1, x2, y2 = rois[row].double()
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, 1.7 * (x2 - x1), 1.7 * (y2 - y1)
        sides = []
        for side, (start, length) in enumerate(
            ((x - w / 2, w), (x + w / 2, -w), (y - h / 2, h), (y + h / 2, -h))
        ):
            best = int(buckets[row, 7 * side : 7 * side + 7].argmax())
            offset = float(offsets[row, 7 * side + best])
            sides.append(start + (0.5 + best) * length / 14 - offset * abs(length) / 14)
        expected_box = torch.stack([sides[0], sides[2], sides[1], sides[3]])
        torch.testing.assert_close(found[row].double(), expected_box, rtol=1e-4, atol=1e-3)


# ---------------------------------------------------------------------------
# Sparse R-CNN and QueryInst
# ---------------------------------------------------------------------------


def sparse_head(masks=False, wrapped=None):
    init_default_scope('mmdet')
    extractor = dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=2),
        out_channels=8,
        featmap_strides=[8],
    )
    dynamic = dict(
        type='DynamicConv',
        in_channels=8,
        feat_channels=4,
        out_channels=8,
        input_feat_shape=3,
        act_cfg=dict(type='ReLU', inplace=True),
        norm_cfg=dict(type='LN'),
    )
    box_head = dict(
        type='DIIHead',
        num_classes=3,
        num_heads=2,
        num_reg_fcs=1,
        feedforward_channels=16,
        in_channels=8,
        dropout=0.0,
        dynamic_conv_cfg=dynamic,
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            clip_border=False,
            target_means=[0.0] * 4,
            target_stds=[0.5, 0.5, 1.0, 1.0],
        ),
    )
    config = dict(
        type='SparseRoIHead',
        num_stages=STAGES,
        stage_loss_weights=[1.0, 0.5],
        proposal_feature_channel=8,
        bbox_roi_extractor=extractor,
        bbox_head=[copy.deepcopy(box_head) for _ in range(STAGES)],
    )
    if masks:
        config['mask_roi_extractor'] = copy.deepcopy(extractor)
        config['mask_head'] = [
            dict(
                type='DynamicMaskHead',
                dynamic_conv_cfg=dict(dynamic, with_proj=False),
                num_convs=1,
                num_classes=3,
                roi_feat_size=3,
                in_channels=8,
                conv_out_channels=8,
                loss_mask=dict(type='DiceLoss', loss_weight=8.0, use_sigmoid=True, activate=False),
            )
            for _ in range(STAGES)
        ]
    stage = dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xyxy'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        ),
        sampler=dict(type='PseudoSampler'),
        pos_weight=1,
        mask_size=6,
    )
    parts = dict(
        train_cfg=[ConfigDict(copy.deepcopy(stage)) for _ in range(STAGES)],
        test_cfg=ConfigDict(max_per_img=QUERIES, mask_thr_binary=0.5),
    )
    if wrapped is not None:
        config = dict(wrap(config, **wrapped), **parts)
    else:
        config = dict(config, **parts)
    head = MODELS.build(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return head.train()


def sparse_losses(head, replicas):
    generator = torch.Generator().manual_seed(0)
    height, width = SHAPE
    features = torch.randn(len(replicas), 8, height // 8, width // 8, generator=generator)
    whwh = torch.tensor([width, height, width, height], dtype=torch.float32)
    proposals = []
    for _ in replicas:
        boxes = torch.rand(QUERIES, 4, generator=generator) * 40
        boxes[:, 2:] += boxes[:, :2] + 4
        proposals.append(
            InstanceData(
                bboxes=boxes,
                imgs_whwh=whwh.repeat(QUERIES, 1),
                features=torch.randn(QUERIES, 8, generator=generator),
            )
        )
    return head.loss((features.requires_grad_(),), proposals, copy.deepcopy(replicas)), features


@pytest.mark.parametrize('masks', [False, True], ids=['Sparse R-CNN', 'QueryInst'])
def test_sparse_heads_against_a_naive_loop(masks):
    plain, stock = sparse_head(masks), sparse_head(masks, wrapped=dict(rho=0))
    head = sparse_head(masks, wrapped=dict(rho=1.0))
    assert list(head.state_dict()) == list(plain.state_dict())
    seen = []
    for box_head in head.bbox_head:
        inner = box_head.loss_and_target

        def noted(scores, boxes, sampled, *args, inner=inner, **kwargs):
            seen.append((scores, boxes, sampled))
            return inner(scores, boxes, sampled, *args, **kwargs)

        box_head.loss_and_target = noted
    results = [sparse_losses(each, samples()) for each in (plain, stock, head)]
    expected, zero, losses = (each for each, _ in results)
    for key, value in expected.items():
        assert torch.equal(zero[key], value) and torch.equal(losses[key], value), key
    gradients = []
    for found, features in results:
        total(found).backward()
        gradients.append(features.grad)
    assert torch.equal(gradients[0], gradients[1]) and gradients[2].isfinite().all()
    assert not torch.equal(gradients[0], gradients[2])
    for stage, (scores, boxes, sampled) in enumerate(seen):
        weight = [1.0, 0.5][stage]
        groups, restored, logits, whole = [], [], [], []
        for image, one in enumerate(sampled):
            gt = samples()[image].gt_instances
            for row, k in zip(one.pos_inds.tolist(), one.pos_assigned_gt_inds.tolist()):
                groups.append(10 * samples()[image].source_id + k)
                place = QUERIES * image + row
                logits.append(scores[place])
                restored.append(to_source(boxes[place], gt.source_matrices[k].numpy()))
                whole.append((~gt.cut_sides[k]).tolist())
        options = dict(detach_mean=False, avg_factor=len(groups))
        cls_term = twin.bernoulli(torch.stack(logits), groups, temperature=1.0, **options)
        box_term = twin.box(torch.stack(restored), groups, whole, **options)
        assert losses[f's{stage}.lt_num_paired'] == len(groups) == 8
        for name, term in (('cls', cls_term), ('bbox', box_term)):
            found = losses[f's{stage}.loss_lt_{name}'].double()
            torch.testing.assert_close(found, weight * term, rtol=1e-4, atol=1e-6)
        if masks:
            assert losses[f's{stage}.lt_kl_mask'] >= 0
