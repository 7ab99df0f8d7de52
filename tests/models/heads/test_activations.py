"""The class term reads the logits as the stock loss does, for every classification loss.

What a loss reads is found by what it does: a softmax does not change when a number is added
to all logits of a row, independent sigmoids do.
"""

import copy

import pytest
import torch
from mmdet.registry import MODELS as DETECTION_MODELS
from mmengine.registry import init_default_scope
from mmpretrain.models import losses as classification_losses
from mmpretrain.registry import MODELS
from torch import nn

from lt_mm.models.heads import wrap_head
from lt_mm.models.heads.class_losses import reads_sigmoid
from lt_mm.structures.errors import UnsupportedHeadError

LOGITS = torch.tensor([[1.5, -0.5, 0.3], [-1.0, 0.2, 2.0]])
# One class an image, and several.
TARGETS = {
    'index': torch.tensor([0, 2]),
    'multi-label': torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),
}
CLASSIFICATION = {
    'CrossEntropyLoss': [
        (dict(), 'index'),
        (dict(use_soft=True), 'multi-label'),
        (dict(use_sigmoid=True), 'multi-label'),
    ],
    'LabelSmoothLoss': [
        (dict(label_smooth_val=0.1, num_classes=3), 'index'),
        (dict(label_smooth_val=0.1, num_classes=3, mode='classy_vision'), 'index'),
        (dict(label_smooth_val=0.1, num_classes=3, use_sigmoid=True), 'index'),
        (dict(label_smooth_val=0.1, num_classes=3, mode='multi_label'), 'multi-label'),
        (
            dict(label_smooth_val=0.1, num_classes=3, mode='multi_label', use_sigmoid=True),
            'multi-label',
        ),
        (
            dict(label_smooth_val=0.1, num_classes=3, mode='multi_label', use_sigmoid=False),
            'multi-label',
        ),
    ],
    'FocalLoss': [(dict(), 'multi-label')],
    'AsymmetricLoss': [(dict(), 'multi-label'), (dict(use_sigmoid=False), 'multi-label')],
    'SeesawLoss': [(dict(num_classes=3), 'index')],
}
# Losses of MMPretrain that are not of class logits.
OTHERS = {
    'CAELoss',
    'CosineSimilarityLoss',
    'CrossCorrelationLoss',
    'PixelReconstructionLoss',
    'RegressionLoss',
    'SwAVLoss',
}
CASES = [
    pytest.param(dict(type=name, **options), TARGETS[target], id=f'{name}, {options}')
    for name, settings in CLASSIFICATION.items()
    for options, target in settings
]


def is_sigmoid(loss, target):
    """Whether the loss changes when all logits of a row grow alike."""
    twin = copy.deepcopy(loss)  # SeesawLoss counts the samples that it has seen
    return not torch.allclose(loss(LOGITS, target), twin(LOGITS + 0.7, target), atol=1e-6)


@pytest.mark.parametrize('config, target', CASES)
def test_losses_of_mmpretrain(config, target):
    loss = MODELS.build(config)
    assert reads_sigmoid(loss) == is_sigmoid(loss, target)


def test_no_loss_of_mmpretrain_is_forgotten():
    classes = {
        name
        for name in classification_losses.__all__
        if isinstance(getattr(classification_losses, name), type)
    }
    # The original release has no RegressionLoss.
    assert classes - OTHERS == set(CLASSIFICATION)


@pytest.mark.parametrize(
    'loss, target',
    [
        (nn.CrossEntropyLoss(), 'index'),
        (nn.BCEWithLogitsLoss(), 'multi-label'),
        (nn.MultiLabelSoftMarginLoss(), 'multi-label'),
    ],
)
def test_losses_of_torch(loss, target):
    assert reads_sigmoid(loss) == is_sigmoid(loss, TARGETS[target])


class OwnLoss(nn.Module):
    def forward(self, cls_score, label, **kwargs):
        return cls_score.sum()


def test_a_loss_that_does_not_tell_wants_the_option():
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=3, in_channels=4)

    def build():
        built = MODELS.build(dict(head))
        built.loss_module = OwnLoss()
        return built

    with pytest.raises(UnsupportedHeadError, match="OwnLoss .*activation='softmax'"):
        wrap_head(build())
    assert wrap_head(build(), activation='sigmoid')._lt_is_sigmoid()
    assert not wrap_head(build(), activation='softmax')._lt_is_sigmoid()


@pytest.mark.parametrize('use_sigmoid', [False, True])
@pytest.mark.parametrize('name', ['CrossEntropyLoss', 'FocalLoss', 'GHMC', 'QualityFocalLoss'])
def test_use_sigmoid_of_the_losses_of_mmdet(name, use_sigmoid):
    """Box heads and dense heads go by this attribute of the stock loss."""
    if not use_sigmoid and name != 'CrossEntropyLoss':
        with pytest.raises((AssertionError, NotImplementedError)):
            loss = DETECTION_MODELS.build(dict(type=name, use_sigmoid=False))
            loss(LOGITS, TARGETS['index'])
        return
    loss = DETECTION_MODELS.build(dict(type=name, use_sigmoid=use_sigmoid))
    arguments = (TARGETS['index'],)
    if name == 'GHMC':
        arguments = (TARGETS['multi-label'], torch.ones(2, 3))
    elif name == 'QualityFocalLoss':
        arguments = ((TARGETS['index'], torch.tensor([0.5, 0.9])),)
    assert loss.use_sigmoid == use_sigmoid
    changed = loss(LOGITS + 0.7, *arguments)
    assert use_sigmoid != torch.allclose(loss(LOGITS, *arguments), changed, atol=1e-6)
