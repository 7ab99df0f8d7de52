"""MMPretrain's MultiTaskHead: each task has its own term, over the samples that have the task."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmpretrain.structures import DataSample, MultiTaskDataSample

from lt_mm.models.heads import wrap_head
from lt_mm.registry import TRANSFORMS
from lt_mm.structures.errors import MissingRecordError, UnsupportedHeadError
from tests import reference_losses
from tests.models.heads.head_data import build_cls_head, total

LINEAR = dict(type='LinearClsHead', num_classes=3)
HEAD = dict(
    type='MultiTaskHead',
    task_heads=dict(
        colour=LINEAR,
        shape=dict(
            type='MultiLabelLinearClsHead',
            num_classes=4,
            loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
        ),
    ),
    in_channels=5,
)
IDS = [7, 7, 2, 2, 4, 4]
HAVE_SHAPE = [0, 1, 4, 5]  # nobody knows the shape of source 2
WRAPPED = dict(type='lt_mm.LossTransformHead', head=HEAD, strength='plain')


def samples(**record):
    """The batch, with other values in its record if they are given."""
    made = []
    for place, source_id in enumerate(IDS):
        sample = MultiTaskDataSample()
        sample.set_field(DataSample().set_gt_label(source_id % 3), 'colour')
        if place in HAVE_SHAPE:
            score = torch.tensor([1.0, 0.0, 1.0, 0.0])
            sample.set_field(DataSample().set_gt_score(score), 'shape')
        sample.set_metainfo(dict(source_id=source_id, source_shape=(32, 32)) | record)
        made.append(sample)
    return made


def feats():
    generator = torch.Generator().manual_seed(0)
    leaf = torch.randn(6, 5, generator=generator, requires_grad=True)
    return leaf, (leaf,)


def losses_and_gradient(head):
    leaf, given = feats()
    losses = head.loss(given, samples())
    total(losses).backward()
    return losses, leaf.grad


def test_rho_zero_is_the_stock_loss_bit_for_bit():
    stock, head = build_cls_head(HEAD), build_cls_head(dict(WRAPPED, rho=0))
    assert isinstance(head, type(stock)) and list(head.state_dict()) == list(stock.state_dict())
    expected, gradient = losses_and_gradient(stock)
    found, own = losses_and_gradient(head)
    assert {key: found[key] for key in expected} == expected and torch.equal(own, gradient)
    assert found['colour_mask_size'] == 6 and found['shape_mask_size'] == 4
    for task in ('colour', 'shape'):
        assert found[f'{task}_loss_lt_cls'] == 0 and found[f'{task}_lt_kl_cls'] > 1e-3


def test_each_task_gets_the_term_of_a_naive_loop():
    stock, head = build_cls_head(HEAD), build_cls_head(dict(WRAPPED, rho=2.5))
    leaf, given = feats()
    expected = stock.loss(given, samples())
    logits = stock(given)
    terms = dict(
        colour=reference_losses.categorical(logits['colour'], IDS),
        shape=reference_losses.bernoulli(
            logits['shape'][HAVE_SHAPE], [IDS[place] for place in HAVE_SHAPE]
        ),
    )
    (total(expected) + 2.5 * sum(terms.values())).backward()
    found, own = losses_and_gradient(head)
    for task, term in terms.items():
        assert term > 1e-3
        torch.testing.assert_close(found[f'{task}_loss_lt_cls'], 2.5 * term.float())
        assert torch.equal(found[f'{task}_loss'], expected[f'{task}_loss'])
        assert found[f'{task}_lt_paired_share'] == 1
    torch.testing.assert_close(own, leaf.grad)


def test_nested_tasks_of_a_built_head():
    nested = dict(type='MultiTaskHead', task_heads=dict(outer=HEAD))
    head = wrap_head(build_cls_head(nested), rho=1.0, strength='plain')
    outer = [MultiTaskDataSample(metainfo=dict(source_id=source_id)) for source_id in IDS]
    for sample, inner in zip(outer, samples(source_id=None)):
        sample.set_field(inner, 'outer')
    losses, flat = head.loss(feats()[1], outer), build_cls_head(dict(WRAPPED, rho=1.0))
    flat.load_state_dict(head.task_heads['outer'].state_dict())
    expected = flat.loss(feats()[1], samples())
    assert {f'outer_{key}': value for key, value in expected.items()}.items() <= losses.items()


def test_one_task_alone_is_refused_with_the_lines():
    one = copy.deepcopy(HEAD)
    one['task_heads']['colour'] = dict(type='lt_mm.LossTransformHead', head=LINEAR)
    head = build_cls_head(one)
    with pytest.raises(UnsupportedHeadError, match="head=dict\\(type='MultiTaskHead'"):
        head.loss(feats()[1], samples())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UnsupportedHeadError, match='across_ranks=False'):
        build_cls_head(dict(WRAPPED, across_ranks=True))
    head = build_cls_head(WRAPPED)
    with pytest.raises(MissingRecordError, match='source_id'):
        head.loss(feats()[1], [MultiTaskDataSample() for _ in IDS])
    unlabelled = samples()
    unlabelled[0].set_metainfo(dict(is_labelled=False))
    with pytest.raises(UnsupportedHeadError, match='unlabelled'):
        head.loss(feats()[1], unlabelled)


def test_the_record_of_the_real_pipeline(tmp_path):
    """From an image to the loss: PackMultiTaskInputs inside the InvertiblePipeline."""
    import cv2
    import numpy as np

    path = str(tmp_path / 'image.png')
    cv2.imwrite(path, np.zeros((8, 8, 3), np.uint8))
    packing = dict(type='mmpretrain.PackMultiTaskInputs', multi_task_fields=['gt_label'])
    pipeline = TRANSFORMS.build(
        ConfigDict(
            type='lt_mm.InvertiblePipeline', transforms=[dict(type='LoadImageFromFile'), packing]
        )
    )
    results = [
        dict(img_path=path, gt_label=dict(colour=1), sample_idx=number) for number in (0, 0, 1, 1)
    ]
    packed = [pipeline(each)['data_samples'] for each in results]
    head = build_cls_head(WRAPPED)
    losses = head.loss((torch.randn(4, 5),), packed)
    assert losses['colour_lt_num_paired'] == 4 and losses['shape_mask_size'] == 0
