"""The box term beside the stock loss at random initialisation, and what is said if it is empty."""

import copy

import pytest
import torch

from tests.models.heads.dense_data import HEADS, build, losses_of_inputs, total
from tests.models.heads.head_data import (
    FLIP,
    SHEAR,
    ZOOM,
    build_roi_head,
    cascade_config,
    det_sample,
    mask_roi_head_config,
    roi_head_config,
    roi_losses,
    sampled_rois,
)


def samples():
    return [
        det_sample(3),
        det_sample(3, view=FLIP),
        det_sample(8, view=ZOOM),
        det_sample(8, view=FLIP @ ZOOM),
    ]


def initialised(head, seed):
    torch.manual_seed(seed)
    for module in head.modules():
        if hasattr(module, '_is_init'):
            module._is_init = False
        elif hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    head.init_weights()
    return head


def check(losses):
    box = sum(value for key, value in losses.items() if 'loss' in key and 'lt_bbox' in key)
    stock = total({key: value for key, value in losses.items() if 'lt_' not in key})
    assert box <= stock / 2
    (box + stock).backward()


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', HEADS)
def test_dense_heads_start_at_half_of_their_stock_loss_at_most(kind, seed):
    head = initialised(build(kind, rho=1.0), seed)
    check(losses_of_inputs(kind, head, samples()))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('config', [roi_head_config, cascade_config])
def test_roi_heads_start_at_half_of_their_stock_loss_at_most(config, seed):
    head = initialised(build_roi_head(dict(type='lt_mm.LossTransformHead', head=config())), seed)
    check(roi_losses(head, samples(), seed)[0])


REASONS = {
    'no instance had predictions': [det_sample(3), det_sample(8)],
    'rotated, sheared': [det_sample(3, view=SHEAR), det_sample(3, view=SHEAR)],
    'cut a side': [det_sample(3), det_sample(3)],
}


@pytest.mark.parametrize('reason', REASONS)
def test_a_term_that_compares_nothing_says_so_once(reason, monkeypatch):
    head = build_roi_head(
        dict(type='lt_mm.LossTransformHead', head=roi_head_config(), rho_cls=0.0, rho_bbox=1.0)
    )
    replicas, said = copy.deepcopy(REASONS[reason]), []
    if reason == 'cut a side':
        for replica in replicas:
            replica.gt_instances.cut_sides[:, :2] = True
    monkeypatch.setattr(
        'lt_mm.models.heads.empty_terms.print_log', lambda message, **_: said.append(message)
    )
    head.bbox_head.lt_options.allow_unrepeated = True
    head.bbox_head._lt_excess = -1000
    for step in range(110):
        losses, _ = roi_losses(head, replicas)
        assert losses['lt_num_box_pairs'] == 0 and losses['loss_lt_bbox'] == 0
        assert len(said) == (step >= 49)
    assert reason in said[0] and 'loss_lt_bbox' in said[0]


def test_a_term_that_compares_says_nothing(monkeypatch):
    head = build_roi_head(dict(type='lt_mm.LossTransformHead', head=roi_head_config()))
    said = []
    monkeypatch.setattr(
        'lt_mm.models.heads.empty_terms.print_log', lambda message, **_: said.append(message)
    )
    for _ in range(51):
        losses, _ = roi_losses(head, samples())
    assert losses['lt_num_box_pairs'] > 0 and not said


def test_masks_that_are_uncertain_everywhere_are_said_to_compare_nothing(monkeypatch):
    """Yes and no from cell to cell: all cells of the grid are read across an edge."""
    head = build_roi_head(
        dict(type='lt_mm.LossTransformHead', head=mask_roi_head_config(), mask_grid=8)
    )
    replicas = [det_sample(3), det_sample(3, view=ZOOM)]
    _, sampled = sampled_rois(head, replicas)
    annotations = [replica.gt_instances for replica in replicas]
    head.train_cfg.mask_size = 12
    count = sum(len(each.pos_priors) for each in sampled)
    said = []
    monkeypatch.setattr(
        'lt_mm.models.heads.empty_terms.print_log', lambda message, **_: said.append(message)
    )
    ys, xs = torch.meshgrid(torch.arange(12), torch.arange(12), indexing='ij')
    board = torch.where((xs + ys) % 2 == 0, 9.0, -9.0).expand(count, 3, 12, 12).clone()
    for step in range(50):
        losses = head.mask_head.loss_and_target(board, sampled, annotations, head.train_cfg)
        losses = losses['loss_mask']
        assert len(said) == (step >= 49)
    assert losses['lt_kl_mask'] == 0
    assert 'away from its edge' in said[0] and 'loss_lt_mask' in said[0]
