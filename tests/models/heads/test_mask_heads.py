"""LossTransformHead on MMDetection's mask heads: contracts with the stock, the term."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.structures.mask import PolygonMasks
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from lt_mm.models.heads.families import mask_head
from lt_mm.structures.errors import MissingRecordError, UnpairedBatchError, UnsupportedHeadError
from tests import reference
from tests import reference_losses as twin
from tests.models.heads.head_data import (
    FLIP,
    IDENTITY,
    MASK_SIDE,
    SHAPE,
    SHEAR,
    ZOOM,
    build_roi_head,
    det_sample,
    mask_roi_head_config,
    rcnn_train_cfg,
    roi_inputs,
    roi_losses,
    sampled_rois,
    to_source,
    total,
)

KINDS = {
    'each class': {},
    'class-agnostic': dict(class_agnostic=True),
    'shared extractor': dict(shared=True),
}
GRID = 5  # no centre of a cell lies on the edge of a RoI


def replicas():
    """Three replicas of source 3, and two of source 8, one of which lost an object."""
    return [
        det_sample(3),
        det_sample(3, flip=True),
        det_sample(3, view=ZOOM),
        det_sample(8, instances=(0,)),
        det_sample(8, view=FLIP @ ZOOM),
    ]


def stock(kind='each class', **changes):
    return build_roi_head(mask_roi_head_config(**KINDS[kind], **changes))


def wrapped(kind='each class', roi=True, **options):
    config = mask_roi_head_config(**KINDS[kind])
    if roi:
        return build_roi_head(dict(type='lt_mm.LossTransformHead', head=config, **options))
    config['mask_head'] = dict(type='lt_mm.LossTransformHead', head=config['mask_head'], **options)
    return build_roi_head(
        config, dict(type='lt_mm.SourceTrackingSampler', sampler=rcnn_train_cfg().sampler)
    )


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'mask_head'])
@pytest.mark.parametrize('kind', KINDS)
def test_identity_of_the_stock_head(kind, roi):
    plain, head = stock(kind), wrapped(kind, roi)
    assert isinstance(head.mask_head, type(plain.mask_head))
    assert list(head.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in head.named_parameters()] == [n for n, _ in plain.named_parameters()]
    head.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(head.state_dict(), strict=True)
    samples = replicas()[:2]
    found = []
    for model in (head, plain):
        features, proposals = roi_inputs(samples)
        with torch.no_grad():
            found.append(model.eval().predict(features, proposals, samples))
    for mine, theirs in zip(*found):
        assert len(theirs) and torch.equal(mine.bboxes, theirs.bboxes)
        assert torch.equal(mine.masks, theirs.masks)
    assert kind == 'class-agnostic' or any(theirs.masks.any() for theirs in found[1])


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'mask_head'])
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
    assert losses['loss_lt_mask'] == 0 and losses['lt_kl_mask'] > 0


# ---------------------------------------------------------------------------
# The term against a naive loop
# ---------------------------------------------------------------------------


def _read(mask, x, y):
    """A mask (h, w) at a point counted in its cells; edge cells go on outwards."""
    weights = []
    for size, place in zip(mask.shape, (y, x)):
        place = min(max(place - 0.5, 0), size - 1)
        weights.append((1 - (torch.arange(size, dtype=torch.float64) - place).abs()).clamp(min=0))
    return weights[0] @ mask.double() @ weights[1]


def _in_source(mask, roi, view, region):
    """A mask read cell by cell on the grid of a source region: logits, and inside."""
    x1, y1, x2, y2 = roi.tolist()
    values, inside, probabilities = [], [], mask.detach().double().sigmoid()
    for point in reference.cell_centers(region, GRID, GRID).reshape(-1, 2):
        x, y = reference.move_point(*point, view)
        across, down = (x - x1) / (x2 - x1), (y - y1) / (y2 - y1)
        values.append(_read(mask, across * mask.shape[1], down * mask.shape[0]))
        place = across * mask.shape[1], down * mask.shape[0]
        mean = _read(probabilities, *place)
        blur = _read((probabilities - mean).square(), *place).sqrt()
        inside.append(bool(0 <= across <= 1 and 0 <= down <= 1 and blur <= 0.1))
    return (torch.stack(values).view(GRID, GRID), torch.tensor(inside).view(GRID, GRID))


def _naive_term(head, samples, agnostic, pairing='gt', **options):
    features, results = sampled_rois(head, samples)
    if head.share_roi_extractor:
        rois = bbox2roi([result.priors for result in results])
        positive = torch.cat(
            [torch.arange(len(result.priors)) < len(result.pos_priors) for result in results]
        )
        predicted = head.mask_head(head.bbox_roi_extractor(features, rois)[positive])
    else:
        predicted = head.mask_head(
            head.mask_roi_extractor(features, bbox2roi([result.pos_priors for result in results]))
        )
    rows, masks = [], []
    for image, (result, sample) in enumerate(zip(results, samples)):
        gt = sample.gt_instances
        for roi, k in zip(result.pos_priors, result.pos_assigned_gt_inds.tolist()):
            channel = 0 if agnostic else int(gt.labels[k])
            masks.append(predicted[len(masks), channel])
            rows.append(
                (
                    tuple(gt.source_ids[k].tolist()),
                    image,
                    roi,
                    gt.source_matrices[k].numpy(),
                    gt.bboxes[k],
                    bool(gt.visibility[k] >= 0.3),
                )
            )
    instances, images, rois, views, boxes, keep = zip(*rows)
    groups = twin.across_replicas(instances, images, keep)
    regions = twin.hulls([to_source(box, view).tolist() for box, view in zip(boxes, views)], groups)
    read = [_in_source(*row) for row in zip(masks, rois, views, regions)]
    masks = torch.stack([values for values, _ in read])
    inside = torch.stack([inside for _, inside in read])
    compared = groups
    if pairing in ('gt', 'gt_score'):  # a mask has no score
        given = map(torch.equal, rois, boxes)
        compared = twin.resort(groups, images, list(map(twin.distance, rois, boxes, given)))
    if pairing == 'gt_mean':
        compared = twin.one_each(groups, images)
        masks, inside = _means(masks, inside, twin.cells(groups, images), options)
    term = twin.masks(masks, inside, compared, **options)
    return term, groups, torch.stack([inside for _, inside in read])


def _means(masks, inside, cells, options):
    """Logits of the mean masks of each cell, pixel by pixel, and where there is one."""
    temperature = options.get('temperature', 1)
    masks, inside = masks.clone(), inside.clone()
    for cell in cells:
        seen = inside[cell].double()
        p = (masks[cell] / temperature).sigmoid()
        mean = (seen * p).sum(0) / seen.sum(0).clamp(min=1)
        masks[cell] = temperature * torch.where(seen.sum(0) > 0, mean, 0.5).logit()
        inside[cell] = seen.sum(0) > 0
    return masks, inside


@pytest.mark.parametrize('roi', [True, False], ids=['roi_head', 'mask_head'])
@pytest.mark.parametrize(
    'kind, options',
    [
        *((kind, {}) for kind in KINDS),
        *(
            ('each class', dict(temperature=2.0, detach_mean=True, pairing=pairing))
            for pairing in ('gt', 'gt_score', 'gt_mean', 'gt_all')
        ),
    ],
    ids=[*KINDS, 'options', 'gt_score', 'gt_mean', 'gt_all'],
)
def test_term_against_a_naive_loop(kind, roi, options):
    head = wrapped(kind, roi, rho_mask=0.5, mask_grid=GRID, **options)
    samples = replicas()
    samples[4].gt_instances.visibility[1] = 0.2
    losses, _ = roi_losses(head, samples)
    term, groups, inside = _naive_term(head, samples, kind == 'class-agnostic', **options)
    assert len(set(groups) - {-1}) == 3 and -1 in groups
    assert not inside.all() and inside.any()
    torch.testing.assert_close(losses['loss_lt_mask'].double(), 0.5 * term, rtol=1e-4, atol=1e-7)
    assert term > 2e-5 and losses['loss_lt_mask'].dtype == torch.float32
    weights = list(head.mask_head.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(losses['loss_lt_mask'], weights),
        torch.autograd.grad(0.5 * term, weights),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    expected, _ = roi_losses(stock(kind), samples)
    assert torch.equal(losses['loss_mask'], expected['loss_mask'])


# ---------------------------------------------------------------------------
# What the term sees
# ---------------------------------------------------------------------------

VERTICAL = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, SHAPE[0]], [0.0, 0.0, 1.0]])
CROP = np.array([[1.0, 0.0, -20.0], [0.0, 1.0, -14.0], [0.0, 0.0, 1.0]])
SHRINK = np.diag([0.6, 0.8, 1.0])
VIEWS = {
    'flip': FLIP,
    'vertical flip': VERTICAL,
    'zoom': ZOOM,
    'crop': CROP,
    'shrink': SHRINK,
    'flip and zoom': FLIP @ ZOOM,
    'shear': SHEAR,
}


def _term_of_source_function(samples, change=lambda masks: masks):
    """The term where each replica's masks are one function of the source image.

    Args:
        change: Is applied to the masks (p, classes, h, w) of the second replica.
    """
    side = 56
    head = wrapped(rho=1.0, mask_grid=28, pairing='gt_all')
    head.train_cfg.mask_size = side
    _, results = sampled_rois(head, samples)
    predicted = []
    for image, (result, sample) in enumerate(zip(results, samples)):
        back = reference.inverse(sample.source_matrix)
        masks = []
        for roi in result.pos_priors:
            points = reference.cell_centers(roi.tolist(), side, side).reshape(-1, 2)
            x, y = torch.tensor(reference.move_points(points, back)).T
            logits = 3 * torch.sin(x / 12 + 1) + 2 * torch.cos(y / 10)
            masks.append(logits.view(1, side, side).expand(3, -1, -1))
        masks = torch.stack(masks).float()
        predicted.append(change(masks) if image else masks)
    masks = torch.cat(predicted).requires_grad_()
    losses = head.mask_head.loss_and_target(
        masks, results, [sample.gt_instances for sample in samples], head.train_cfg
    )
    term = losses['loss_mask']['loss_lt_mask']
    term.backward()
    assert masks.grad.isfinite().all()
    return float(term.detach())


@pytest.mark.parametrize('view', VIEWS)
def test_a_mask_that_is_right_in_every_replica_costs_nothing(view):
    samples = [det_sample(3), det_sample(3, view=VIEWS[view])]
    right = _term_of_source_function(samples)
    mirrored = _term_of_source_function(samples, lambda masks: masks.flip(-1))
    assert right < 1e-4 and mirrored > 0.02
    # Without the record of what moved it, the same mask is at another place.
    forgotten = copy.deepcopy(samples)
    forgotten[1].gt_instances.source_matrices[:] = torch.tensor(IDENTITY)
    assert _term_of_source_function(forgotten) > 100 * right


def _outlined(seed, bitmap):
    """Two replicas of a source with one object, whose outline is a random polygon."""
    random = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    outline = 128 + (random.uniform(20, 90) * random.uniform(0.5, 1, 10)) * np.array(
        [np.cos(angles), np.sin(angles)]
    )
    samples = []
    for mirrored in (False, True):
        scale = random.uniform(0.6, 1.6)
        view = np.array(
            [[scale, 0, random.uniform(0, 30)], [0, scale, random.uniform(0, 30)], [0, 0, 1]]
        )
        if mirrored:
            view = np.array([[-1.0, 0, 512], [0, 1, 0], [0, 0, 1]]) @ view
        points = view[:2, :2] @ outline + view[:2, 2:]
        sample = det_sample(3, instances=(0,))
        sample.gt_instances.source_matrices = torch.tensor(view)[None]
        box = np.concatenate([points.min(axis=1), points.max(axis=1)])
        masks = PolygonMasks([[points.T.reshape(-1)]], 512, 512)
        sample.gt_instances.bboxes = torch.tensor(box[None], dtype=torch.float32)
        sample.gt_instances.masks = masks.to_bitmap() if bitmap else masks
        sides = np.tile(box[2:] - box[:2], 2)
        roi = (box + random.uniform(-0.15, 0.15, 4) * sides).clip(0, 512)
        sample.roi = torch.tensor(roi[None], dtype=torch.float32)
        samples.append(sample)
    return samples


def _terms_of_targets(p, bitmap, change=lambda masks: masks):
    """Terms of masks that are the stock targets with probability p; mean and largest one."""
    terms = []
    for seed in range(12):
        samples = _outlined(seed, bitmap)
        head = wrapped(rho=1.0).mask_head
        results = []
        for sample in samples:
            gt = sample.gt_instances
            result = SamplingResult.random()
            result.pos_priors, result.pos_assigned_gt_inds = sample.roi, torch.zeros(1).long()
            result.pos_is_gt = torch.zeros(1)
            result.pos_gt_labels, result.gt_record = gt.labels, gt
            results.append(result)
        config = ConfigDict(mask_size=28)
        gts = [sample.gt_instances for sample in samples]
        targets = head.get_targets(copy.deepcopy(results), gts, config)
        logits = (2 * change(targets) - 1) * math.log(p / (1 - p))
        leaf = logits[:, None].repeat(1, 3, 1, 1).requires_grad_()
        term = head.loss_and_target(leaf, results, gts, config)['loss_mask']['loss_lt_mask']
        term.backward()
        assert leaf.grad.isfinite().all()
        terms.append(float(term.detach()))
    return sum(terms) / len(terms), max(terms)


def _moved(masks):
    """The second mask three cells off, of 28."""
    return torch.stack([masks[0], masks[1].roll(3, dims=-1)])


def _cut(masks):
    """The second mask without its lower half."""
    return masks * torch.tensor([[1] * 28, [1] * 14 + [0] * 14])[:, :, None]


@pytest.mark.parametrize('bitmap', [False, True], ids=['polygons', 'bitmaps'])
@pytest.mark.parametrize('p, bound', [(0.65, 1e-4), (0.88, 1e-3), (0.98, 3e-3)])
def test_perfect_masks_of_rois_that_lie_differently_cost_nothing(p, bound, bitmap, monkeypatch):
    """Each is what the stock head is trained to, and different ones keep most of the term."""
    mean, largest = _terms_of_targets(p, bitmap)
    moved, cut = (_terms_of_targets(p, bitmap, change)[0] for change in (_moved, _cut))
    monkeypatch.setattr(mask_head, '_MAX_BLUR', 1.0)
    assert largest < bound and mean < _terms_of_targets(p, bitmap)[0] / 10
    assert moved > 0.7 * _terms_of_targets(p, bitmap, _moved)[0]
    assert cut > 0.9 * _terms_of_targets(p, bitmap, _cut)[0]


def test_hidden_instances_pair_with_nothing():
    samples = [det_sample(3), det_sample(3, flip=True, visibility=0.2)]
    assert roi_losses(wrapped(min_visibility=0.3), samples)[0]['loss_lt_mask'] == 0
    assert roi_losses(wrapped(min_visibility=0.1), samples)[0]['loss_lt_mask'] > 0


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
@pytest.mark.parametrize('kind', KINDS)
def test_without_pairs_the_term_is_zero_with_a_graph(kind, samples):
    head = wrapped(kind)
    losses, leaf = roi_losses(head, samples())
    assert losses['loss_lt_mask'] == 0
    losses['loss_lt_mask'].backward(retain_graph=True)
    weights = list(head.mask_head.parameters())
    assert all((weight.grad == 0).all() for weight in weights)
    # Of no RoI, the stock extractor makes features that do not depend on its input.
    assert leaf.grad is None or (leaf.grad == 0).all()
    total(losses).backward()
    assert leaf.grad.isfinite().all()


def test_the_term_is_float32_under_autocast():
    head = wrapped()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses, leaf = roi_losses(head, replicas())
    assert losses['loss_lt_mask'].dtype == torch.float32 and losses['loss_lt_mask'] > 0
    total(losses).backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))],
    ids=['deepcopy', 'pickle'],
)
def test_copies_are_wrapped_too(copied):
    head = wrapped(rho=3.0)
    mine, theirs = (roi_losses(one, replicas())[0] for one in (head, copied(head)))
    for key, value in mine.items():
        assert torch.equal(value, theirs[key])


# ---------------------------------------------------------------------------
# Errors, and other stock heads
# ---------------------------------------------------------------------------


def test_stock_sampler_below_a_wrapped_mask_head():
    config = mask_roi_head_config()
    config['mask_head'] = dict(type='lt_mm.LossTransformHead', head=config['mask_head'])
    with pytest.raises(MissingRecordError, match='lt_mm.SourceTrackingSampler'):
        roi_losses(build_roi_head(config), replicas())


def test_batch_augments_that_resize_are_refused():
    samples = replicas()
    samples[0].set_metainfo(dict(img_shape=(128, 192)))
    with pytest.raises(MissingRecordError, match='BatchSyncRandomResize'):
        roi_losses(wrapped(roi=False), samples)


def test_training_without_replicas_stops():
    head, samples = wrapped(roi=False), [det_sample(1), det_sample(2)]
    for _ in range(9):
        roi_losses(head, samples)
    with pytest.raises(UnpairedBatchError, match='GroupedRepeatAugSampler'):
        roi_losses(head, samples)


UNSUPPORTED = {
    'MaskPointHead': dict(
        type='MaskPointHead', num_classes=3, in_channels=8, num_fcs=1, fc_channels=8
    ),
    'MaskIoUHead': dict(
        type='MaskIoUHead',
        num_convs=1,
        num_fcs=1,
        roi_feat_size=3,
        in_channels=8,
        conv_out_channels=8,
        fc_out_channels=8,
        num_classes=3,
    ),
    'GridHead': dict(
        type='GridHead', num_convs=1, in_channels=8, point_feat_channels=8, norm_cfg=None
    ),
    'FusedSemanticHead': dict(
        type='FusedSemanticHead',
        num_ins=2,
        fusion_level=1,
        num_convs=1,
        in_channels=8,
        conv_out_channels=8,
        num_classes=3,
    ),
}


@pytest.mark.parametrize('name', UNSUPPORTED)
def test_unsupported_mask_heads(name):
    init_default_scope('mmdet')
    MODELS.build(copy.deepcopy(UNSUPPORTED[name]))  # by itself it builds
    with pytest.raises(UnsupportedHeadError, match=f'{name}.* expected .*FCNMaskHead'):
        MODELS.build(dict(type='lt_mm.LossTransformHead', head=copy.deepcopy(UNSUPPORTED[name])))


def test_a_roi_head_with_an_unsupported_mask_head():
    config = dict(mask_roi_head_config(), mask_head=UNSUPPORTED['MaskPointHead'])
    with pytest.raises(UnsupportedHeadError, match='MaskPointHead.*leave the mask head'):
        build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))


OTHERS = {
    'CoarseMaskHead': dict(
        type='CoarseMaskHead',
        num_fcs=1,
        fc_out_channels=16,
        roi_feat_size=MASK_SIDE // 2,
        downsample_factor=1,
    ),
    'SCNetMaskHead': dict(type='SCNetMaskHead', conv_to_res=False),
}


@pytest.mark.parametrize('name', OTHERS)
def test_stock_subclasses_of_the_mask_head(name):
    config = mask_roi_head_config(**OTHERS[name])
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=config))
    if name == 'CoarseMaskHead':  # does not enlarge its masks
        head.train_cfg.mask_size = MASK_SIDE // 2
    losses, leaf = roi_losses(head, replicas())
    assert losses['loss_lt_mask'] > 0
    total(losses).backward()
    assert leaf.grad.isfinite().all()
