"""The term on heads that say masks of whole images, and no boxes: MaskFormer, Mask2Former, SOLO."""

import copy

import pytest
import torch
import torch.nn.functional as F
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
QUERY_HEADS = list(HEADS)
_SOLO = dict(
    num_classes=3,
    in_channels=8,
    feat_channels=8,
    stacked_convs=1,
    strides=[8, 8, 16, 16],
    scale_ranges=[(1, 38), (30, 45), (38, 64), (50, 128)],
    num_grids=[10, 8, 6, 4],
    pos_scale=0.6,
    norm_cfg=dict(type='GN', num_groups=2),
    loss_mask=dict(type='DiceLoss', use_sigmoid=True, loss_weight=3.0),
    loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    test_cfg=dict(
        nms_pre=50, score_thr=0.0, mask_thr=0.1, filter_thr=0.0, kernel='gaussian', sigma=2.0,
        max_per_img=10,
    ),
)  # fmt: skip
_PRODUCTS = dict(_SOLO, loss_mask=dict(_SOLO['loss_mask'], activate=False))
SOLO_HEADS = {
    'SOLO': dict(type='SOLOHead', **_SOLO),
    'decoupled SOLO': dict(type='DecoupledSOLOHead', **_PRODUCTS),
    'light SOLO': dict(type='DecoupledSOLOLightHead', **_PRODUCTS),
    'SOLOv2': dict(
        type='SOLOV2Head',
        **_SOLO,
        mask_feature_head=dict(
            feat_channels=4,
            start_level=0,
            end_level=2,
            out_channels=4,
            mask_stride=4,
            norm_cfg=dict(type='GN', num_groups=2),
        ),
    ),
}
HEADS |= SOLO_HEADS


def build(kind, **options):
    init_default_scope('mmdet')
    config = ConfigDict(dict(test_cfg=None) | copy.deepcopy(HEADS[kind]))
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


def features_of(images):
    generator = torch.Generator().manual_seed(0)
    height, width = SHAPE
    return [
        torch.randn(images, 8, height // stride, width // stride, generator=generator)
        for stride in (4, 8, 16, 32)
    ]


def losses_of(head, replicas):
    torch.manual_seed(0)  # points are drawn
    return head.loss(features_of(len(replicas)), copy.deepcopy(replicas))


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
@pytest.mark.parametrize('kind', QUERY_HEADS)
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


@pytest.mark.parametrize('kind', ['MaskFormer', 'SOLO'])
def test_what_is_refused_says_so(kind):
    with pytest.raises(UnsupportedHeadError, match="no boxes, .*pairing='iou'"):
        losses_of(build(kind, pairing='iou'), samples())
    replicas = samples()
    del replicas[0].gt_instances.source_matrices
    with pytest.raises(MissingRecordError, match='InvertiblePipeline'):
        losses_of(build(kind, rho=1.0), replicas)


@pytest.mark.parametrize('kind', ['MaskFormer', 'SOLO'])
@pytest.mark.parametrize('options', [dict(across_ranks=True), dict(memory=dict())], ids=str)
def test_several_ranks_that_join_are_refused(options, kind, monkeypatch):
    """Masks of whole images have other sizes on other ranks."""
    head = build(kind, **options)
    monkeypatch.setattr(base, 'get_dist_info', lambda: (0, 2))
    with pytest.raises(UnsupportedHeadError, match=f'{kind}Head predicts masks of whole images'):
        losses_of(head, samples())


# ---- SOLO, one cell at a time


def cells_of(plain, kind, outputs, replicas):
    """(image, row, annotation, its mask's logits, distance) of each positive."""
    found = []
    for image, sample in enumerate(replicas):
        gt, owner = sample.gt_instances, {}
        sizes = (
            outputs[2].shape[-2:] if kind == 'SOLOv2' else [each.shape[-2:] for each in outputs[0]]
        )
        for k in range(len(gt)):  # later ones take cells from earlier ones
            masks, labels, *_ = plain._get_targets_single(gt[k : k + 1], featmap_sizes=sizes)
            first = 0
            for level, (own, grid) in enumerate(zip(masks, labels)):
                for cell in (grid.flatten() < 3).nonzero()[:, 0].tolist():
                    owner[first + cell] = k, level, cell, own[0]
                first += grid.numel()
        for row, (k, level, cell, target) in sorted(owner.items()):
            mask = mask_of(kind, outputs, image, level, cell, plain.num_grids[level])
            p, target = mask.detach().double().sigmoid(), target.double()
            common = (p * target).sum()
            found.append((image, row, k, mask, float(1 - common / ((p + target).sum() - common))))
    return found


def mask_of(kind, outputs, image, level, cell, side):
    if kind == 'SOLO':
        return outputs[0][level][image, cell]
    if kind == 'SOLOv2':
        kernel = outputs[0][level][image, :, cell // side, cell % side]
        return sum(weight * feature for weight, feature in zip(kernel, outputs[2][image]))
    x, y = outputs[0][level][image, cell % side], outputs[1][level][image, cell // side]
    return (x.double().sigmoid() * y.double().sigmoid()).logit()


def solo_outputs(kind, images):
    head = build(kind)
    with torch.no_grad():
        found = head(features_of(images))
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(each.shape, generator=generator).requires_grad_()
        if isinstance(each, torch.Tensor)
        else [torch.randn(level.shape, generator=generator).requires_grad_() for level in each]
        for each in found
    )


def leaves_of(outputs):
    return [
        leaf for each in outputs for leaf in ([each] if isinstance(each, torch.Tensor) else each)
    ]


def solo_losses(head, outputs, replicas):
    return head.loss_by_feat(
        *outputs,
        batch_gt_instances=[sample.gt_instances for sample in replicas],
        batch_img_metas=[sample.metainfo for sample in replicas],
    )


@pytest.mark.parametrize('pairing', ['gt', 'gt_all'])
@pytest.mark.parametrize('kind', SOLO_HEADS)
def test_terms_of_solo_against_a_naive_loop(kind, pairing):
    head = build(kind, rho_cls=2.0, rho_mask=0.5, mask_grid=GRID, pairing=pairing)
    replicas, outputs = samples(), solo_outputs(kind, 4)
    found = solo_losses(head, outputs, replicas)
    cells = cells_of(build(kind), kind, outputs, replicas)
    classes = [
        torch.cat([level[image].flatten(1).T for level in outputs[-2 if kind == 'SOLOv2' else -1]])
        for image in range(4)
    ]
    count, groups = len(cells), [10 * replicas[cell[0]].source_id + cell[2] for cell in cells]
    if pairing == 'gt':
        images, distances = [cell[0] for cell in cells], [cell[4] for cell in cells]
        groups = twin.resort(groups, images, distances)
        assert sum(group >= 0 for group in groups) == 8 < count
    kept = [(cell, int(group)) for cell, group in zip(cells, groups) if group >= 0]
    groups = [group for _, group in kept]
    logits = torch.stack([classes[image][row] for (image, row, *_), _ in kept])
    size = (outputs[2] if kind == 'SOLOv2' else outputs[0][0]).shape[-2:]
    whole, read = torch.tensor([0.0, 0.0, SHAPE[1], SHAPE[0]]), []
    gts = [replicas[image].gt_instances[k] for (image, _, k, *_), _ in kept]
    views = [gt.source_matrices[0].numpy() for gt in gts]
    regions = twin.hulls(
        [to_source(gt.bboxes[0], view).tolist() for gt, view in zip(gts, views)], groups
    )
    for ((*_, mask, _), _), view, region in zip(kept, views, regions):
        mask = F.interpolate(mask[None, None].float(), size, mode='bilinear')[0, 0]
        read.append(_in_source(mask, whole, view, region))
    cls_term = twin.bernoulli(logits, groups, avg_factor=count + 1)
    mask_term = twin.masks(*(torch.stack(each) for each in zip(*read)), groups, avg_factor=count)
    assert cls_term > 1e-3 and mask_term > 1e-4
    for term, expected in (
        (found['loss_lt_cls'], 2.0 * cls_term),
        (found['loss_lt_mask'], 0.5 * mask_term),
    ):
        torch.testing.assert_close(term.double(), expected, rtol=1e-4, atol=1e-6)
        gradients = [
            torch.autograd.grad(
                value,
                leaves_of(outputs),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for value in (term, expected)
        ]
        for mine, theirs in zip(*gradients):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('kind', SOLO_HEADS)
def test_by_score_solo_pairs_classes_and_masks_by_distance(kind):
    """A mask has no score of its own, so its term is that of the nearest."""
    replicas, outputs = samples(), solo_outputs(kind, 4)
    found, nearest = (
        solo_losses(build(kind, rho=1.0, mask_grid=GRID, pairing=pairing), outputs, replicas)
        for pairing in ('gt_score', 'gt')
    )
    torch.testing.assert_close(found['loss_lt_mask'], nearest['loss_lt_mask'])
    cells = cells_of(build(kind), kind, outputs, replicas)
    levels = outputs[-2 if kind == 'SOLOv2' else -1]
    logits = torch.stack(
        [
            torch.cat([level[image].flatten(1).T for level in levels])[row]
            for image, row, *_ in cells
        ]
    )
    groups = [10 * replicas[cell[0]].source_id + cell[2] for cell in cells]
    scores = logits.detach().sigmoid().amax(1)
    groups = twin.resort(groups, [cell[0] for cell in cells], (-scores).tolist())
    expected = twin.bernoulli(logits, groups, avg_factor=len(cells) + 1)
    assert expected > 1e-3
    torch.testing.assert_close(found['loss_lt_cls'].double(), expected, rtol=1e-4, atol=1e-6)
    assert abs(found['loss_lt_cls'] - nearest['loss_lt_cls']) > 1e-4
    (found['loss_lt_cls'] + found['loss_lt_mask']).backward()


def mirrored(kind, outputs):
    """The outputs for one image, and those for its mirror image after them."""

    def with_mirror(each):
        return torch.cat([each, each.flip(-1)])

    def of_cells(level, sides):
        return torch.cat([level, level.unflatten(1, sides).flip(2, -1).flatten(1, 2)])

    if kind == 'SOLOv2':
        kernels, classes, features = outputs
        return (
            list(map(with_mirror, kernels)),
            list(map(with_mirror, classes)),
            with_mirror(features),
        )
    *masks, classes = outputs
    grids = HEADS[kind]['num_grids']
    if kind == 'SOLO':
        across = [of_cells(level, (side, side)) for level, side in zip(masks[0], grids)]
        return across, list(map(with_mirror, classes))
    across = [of_cells(level, (1, side)) for level, side in zip(masks[0], grids)]
    return across, list(map(with_mirror, masks[1])), list(map(with_mirror, classes))


@pytest.mark.parametrize('kind', SOLO_HEADS)
def test_mirrored_cells_of_mirrored_replicas_cost_nothing(kind):
    replicas, outputs = samples()[:2], solo_outputs(kind, 1)
    for sample in replicas:
        masks = sample.gt_instances.masks.masks
        for mask, (x1, y1, x2, y2) in zip(masks, sample.gt_instances.bboxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
    head = build(kind, rho=1.0)
    # Where the centres of the objects lie well inside a cell, its mirror image is theirs too.
    head.pos_scale, head.scale_ranges = 2.0, [(1, 100), (0, 0), (1, 100), (0, 0)]
    found = solo_losses(head, mirrored(kind, outputs), replicas)
    assert found['lt_num_paired'] == 4
    assert found['lt_kl_mask'] < 1e-6 and found['lt_kl_cls'] < 1e-6
    replicas[1].gt_instances.source_matrices = replicas[0].gt_instances.source_matrices
    assert solo_losses(head, mirrored(kind, outputs), replicas)['lt_kl_mask'] > 1e-4


@pytest.mark.parametrize('kind', SOLO_HEADS)
def test_solo_predicts_remembers_and_leaves_out_as_any_head(kind):
    plain, head, replicas = build(kind), build(kind, rho=1.0), samples()
    features = features_of(4)
    for each in (plain, head):
        torch.manual_seed(1)
        for parameter in each.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    mine, theirs = (each.eval().predict(features, replicas) for each in (head, plain))
    for one, other in zip(mine, theirs, strict=True):
        assert len(one) and torch.equal(one.masks, other.masks)
        assert torch.equal(one.scores, other.scores) and torch.equal(one.labels, other.labels)
    one = build(kind, rho=1.0, supervise='one')
    outputs = solo_outputs(kind, 4)
    found, seen = solo_losses(one, outputs, replicas), [0, 2]
    own = [[level[seen] for level in each] if isinstance(each, list) else each[seen]
           for each in outputs]  # fmt: skip
    expected = solo_losses(plain.train(), own, [replicas[image] for image in seen])
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert found['lt_num_paired'] == 8
    remembering = build(kind, rho=1.0, memory=dict())
    for step in range(2):  # one replica at a time
        losses = losses_of(remembering, samples()[step : step + 1])
        assert losses['lt_num_paired'] == 2 * step
        assert (losses['loss_lt_cls'] > 0) == (step > 0)
