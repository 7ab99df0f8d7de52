"""The term on MaskFormer and Mask2Former: classes and masks of queries, and no boxes."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from lt_mm.models.heads import base
from lt_mm.structures.errors import MissingRecordError, UnsupportedHeadError
from tests import reference_losses as twin
from tests.models.heads.head_data import FLIP, SHAPE, ZOOM, det_sample, to_source, total
from tests.models.heads.test_first_losses import initialised
from tests.models.heads.test_mask_heads import GRID, _in_source

QUERIES, LAYERS, THINGS, STUFF = 6, 2, 2, 1
_ATTENTION = dict(embed_dims=8, num_heads=2, dropout=0.0, batch_first=True)
_FFN = dict(
    embed_dims=8, feedforward_channels=16, num_fcs=2, act_cfg=dict(type='ReLU', inplace=True)
)
_POSITIONS = dict(num_feats=4, normalize=True)
_COMMON = dict(
    in_channels=[8, 8, 8, 8],
    feat_channels=8,
    out_channels=8,
    num_things_classes=THINGS,
    num_stuff_classes=STUFF,
    num_queries=QUERIES,
    positional_encoding=_POSITIONS,
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=LAYERS,
        layer_cfg=dict(self_attn_cfg=_ATTENTION, cross_attn_cfg=_ATTENTION, ffn_cfg=_FFN),
        init_cfg=None,
    ),
    loss_cls=dict(type='CrossEntropyLoss', loss_weight=1.0, class_weight=[1.0] * 3 + [0.1]),
    loss_dice=dict(
        type='DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=1.0
    ),
)
_COSTS = [
    dict(type='ClassificationCost', weight=1.0),
    dict(type='DiceCost', weight=1.0, pred_act=True, eps=1.0),
]
HEADS = {
    'MaskFormer': dict(
        type='MaskFormerHead',
        **_COMMON,
        pixel_decoder=dict(type='PixelDecoder', norm_cfg=dict(type='GN', num_groups=2)),
        loss_mask=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=20.0),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[*_COSTS, dict(type='FocalLossCost', weight=20.0, binary_input=True)],
            ),
            sampler=dict(type='MaskPseudoSampler'),
        ),
    ),
    'Mask2Former': dict(
        type='Mask2FormerHead',
        **dict(_COMMON, strides=[4, 8, 16, 32]),
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type='MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=2),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=8, num_heads=2, num_levels=3, num_points=2, batch_first=True
                    ),
                    ffn_cfg=_FFN,
                ),
            ),
            positional_encoding=_POSITIONS,
        ),
        loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=5.0),
        train_cfg=dict(
            num_points=200,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    *_COSTS,
                    dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                ],
            ),
            sampler=dict(type='MaskPseudoSampler'),
        ),
    ),
}


def build(kind, **options):
    init_default_scope('mmdet')
    config = ConfigDict(copy.deepcopy(HEADS[kind]), test_cfg=None)
    if options:
        config = dict(type='lt_mm.LossTransformHead', head=config, strength='plain') | options
    torch.manual_seed(0)
    head = MODELS.build(config)
    return initialised(head, 0).train()


def samples(panoptic=False):
    """Two replicas of each of two sources; with a class of stuff below the objects."""
    found = [
        det_sample(3),
        det_sample(3, flip=True),
        det_sample(8, view=ZOOM),
        det_sample(8, view=FLIP @ ZOOM),
    ]
    for sample in found:
        sample.set_metainfo(dict(batch_input_shape=SHAPE))
        if panoptic:
            stuff = torch.full((1, *SHAPE), 255)
            stuff[:, SHAPE[0] // 2 :] = THINGS
            sample.gt_sem_seg = PixelData(sem_seg=stuff)
    return found


def losses_of(head, replicas):
    generator = torch.Generator().manual_seed(0)
    height, width = SHAPE
    features = [
        torch.randn(len(replicas), 8, height // stride, width // stride, generator=generator)
        for stride in (4, 8, 16, 32)
    ]
    torch.manual_seed(0)  # points are drawn
    return head.loss(features, copy.deepcopy(replicas))


@pytest.mark.parametrize('kind', HEADS)
def test_rho_zero_is_the_stock_head(kind):
    plain, head, other = build(kind), build(kind, rho=0), build(kind, rho=1.0)
    assert list(head.state_dict()) == list(plain.state_dict())
    expected, found, more = (losses_of(each, samples(True)) for each in (plain, head, other))
    for key, value in expected.items():
        assert torch.equal(found[key], value) and torch.equal(more[key], value), key
    total(expected).backward()
    total(found).backward()
    for mine, theirs in zip(head.parameters(), plain.parameters()):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
    terms = more['loss_lt_cls'] + more['loss_lt_mask']
    assert more['lt_num_paired'] == 8 and 0 < terms <= total(expected) / 2


@pytest.mark.parametrize('panoptic', [False, True], ids=['instances', 'panoptic'])
@pytest.mark.parametrize('kind', HEADS)
def test_terms_against_a_naive_loop(kind, panoptic):
    head = build(kind, rho_cls=2.0, rho_mask=0.5, mask_grid=GRID)
    replicas = samples(panoptic)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(LAYERS, 4, QUERIES, 4, generator=generator).requires_grad_()
    masks = torch.randn(LAYERS, 4, QUERIES, 16, 24, generator=generator).mul(0.2).requires_grad_()
    assigned, stock = [], head.assigner.assign

    def noted(*args, **kwargs):
        assigned.append(stock(*args, **kwargs))
        return assigned[-1]

    head.assigner.assign = noted
    targets = head.preprocess_gt(
        [sample.gt_instances for sample in replicas],
        [sample.get('gt_sem_seg') for sample in replicas],
    )
    found = head.loss_by_feat(scores, masks, targets, [sample.metainfo for sample in replicas])
    logits, chosen, groups, weight, matched = [], [], [], 0.0, 0
    for image, one in enumerate(assigned[-4:]):
        gt = replicas[image].gt_instances
        for query, k in enumerate((one.gt_inds - 1).tolist()):
            weight += 1.0 if k >= 0 else 0.1
            matched += k >= 0
            if 0 <= k < len(gt):
                logits.append(scores[-1, image, query])
                chosen.append(
                    (masks[-1, image, query], gt.source_matrices[k].numpy(), gt.bboxes[k])
                )
                groups.append(10 * replicas[image].source_id + k)
    assert len(groups) == 8 and matched == (12 if panoptic else 8)
    whole = torch.tensor([0.0, 0.0, SHAPE[1], SHAPE[0]])
    regions = twin.hulls([to_source(box, view).tolist() for _, view, box in chosen], groups)
    read = [
        _in_source(mask, whole, view, region) for (mask, view, _), region in zip(chosen, regions)
    ]
    cls_term = twin.categorical(
        torch.stack(logits), groups, temperature=1.0, detach_mean=False, avg_factor=weight
    )
    mask_term = twin.masks(*(torch.stack(each) for each in zip(*read)), groups, avg_factor=matched)
    assert cls_term > 1e-3 and mask_term > 1e-4
    leaves = [scores, masks]
    for term, expected in (
        (found['loss_lt_cls'], 2.0 * cls_term),
        (found['loss_lt_mask'], 0.5 * mask_term),
    ):
        torch.testing.assert_close(term.double(), expected, rtol=1e-4, atol=1e-6)
        gradients = [
            torch.autograd.grad(
                value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for value in (term, expected)
        ]
        for mine, theirs in zip(*gradients):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_mirrored_masks_of_mirrored_replicas_cost_nothing():
    head, replicas = build('MaskFormer', rho=1.0), samples()[:2]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(LAYERS, 1, QUERIES, 4, generator=generator)
    masks = torch.randn(LAYERS, 1, QUERIES, 16, 24, generator=generator)
    targets = head.preprocess_gt([sample.gt_instances for sample in replicas], [None] * 2)
    metas = [sample.metainfo for sample in replicas]
    scores = torch.cat([scores, scores], dim=1)
    for other, is_zero in ((masks.flip(-1), True), (masks, False)):
        found = head.loss_by_feat(scores, torch.cat([masks, other], dim=1), targets, metas)
        assert (found['lt_kl_mask'] < 1e-6) == is_zero
        assert not is_zero or (found['lt_kl_cls'] < 1e-6 and found['lt_num_paired'] == 4)


@pytest.mark.parametrize('instances', [((), ()), ((0,), ()), ((0,), (1,))])
@pytest.mark.parametrize('kind', HEADS)
def test_without_pairs_the_terms_are_zero_with_a_graph(kind, instances):
    head = build(kind, rho=1.0)
    replicas = [det_sample(1, instances=own) for own in instances]
    for sample in replicas:
        sample.set_metainfo(dict(batch_input_shape=SHAPE))
    losses = losses_of(head, replicas)
    assert losses['loss_lt_cls'] == losses['loss_lt_mask'] == 0
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_what_is_refused_says_so():
    with pytest.raises(UnsupportedHeadError, match="no boxes, .*pairing='iou'"):
        losses_of(build('MaskFormer', pairing='iou'), samples())
    replicas = samples()
    del replicas[0].gt_instances.source_matrices
    with pytest.raises(MissingRecordError, match='InvertiblePipeline'):
        losses_of(build('MaskFormer', rho=1.0), replicas)


@pytest.mark.parametrize('options', [dict(across_ranks=True), dict(memory=dict())], ids=str)
def test_several_ranks_that_join_are_refused(options, monkeypatch):
    """Masks of whole images have other sizes on other ranks."""
    head = build('MaskFormer', **options)
    monkeypatch.setattr(base, 'get_dist_info', lambda: (0, 2))
    with pytest.raises(UnsupportedHeadError, match='MaskFormerHead predicts masks of whole images'):
        losses_of(head, samples())
