"""The count of stock configs that train, on a handful.

``tests/configs/test_heads_document.py`` has what it says of all of them.
"""

import re

import torch
from torch import nn

from lt_mm.apis.zoo import cover, table_of
from lt_mm.apis.zoo import coverage as module
from lt_mm.apis.zoo.steps import StandInBackbone

HANDFUL = {
    'retinanet/retinanet_r18_fpn_1x_coco.py': 'trains',
    'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py': 'trains',
    'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py': 'refused',
    'resnet/resnet18_8xb16_cifar10.py': 'trains',
    'resnet/resnet50_8xb16-mixup_cifar10.py': 'trains',
    'levit/levit-128_8xb256_in1k.py': 'stock fails',
    'efficientformer/efficientformer-l1_8xb128_in1k.py': 'stock fails',
}


def test_a_handful_and_what_is_known_is_not_tried_again(tmp_path, monkeypatch):
    found = cover(tmp_path / 'zoo.jsonl', configs=list(HANDFUL))
    assert {each.config: each.outcome for each in found} == HANDFUL
    table = table_of(found)
    assert '| **all of mmdet** | 3 | 2 |  |  | 1 |' in table
    assert re.search(r'\| `MultiInstanceRoIHead .*\| 1 \|  \|  \|  \| 1: .*\(1\) \|', table)
    monkeypatch.setattr(module, 'take_step', None)
    assert cover(tmp_path / 'zoo.jsonl', configs=list(HANDFUL)) == found


def test_a_stand_in_gives_the_shapes_and_takes_gradient():
    shapes = [dict(shape=[4, 8, 5, 6]), [None, dict(shape=[4, 3]), dict(shape=[4, 7, 2])]]
    backbone = StandInBackbone(shapes)
    assert isinstance(backbone, nn.Module)
    images = torch.rand(2, 3, 16, 16)
    maps, (nothing, token, patches) = backbone(images)
    assert nothing is None
    assert [maps.shape, token.shape, patches.shape] == [(2, 8, 5, 6), (2, 3), (2, 7, 2)]
    assert not torch.equal(maps[0], maps[1])
    (maps.sum() + token.sum() + patches.sum()).backward()
    assert all(value.grad.abs().sum() > 0 for value in backbone.parameters())


def test_a_trial_that_takes_too_long_is_stopped(tmp_path):
    trials = module.Trials(tmp_path / 'known.jsonl', seconds=0.2)

    def endless():
        while True:
            try:
                torch.ones(1).item()
            except Exception:
                continue

    outcome, reason = trials.get(('endless',), endless)
    assert outcome == 'wraps' and '0.2 s' in reason
