"""Every supported head and every loss in micro-batches, against the step on the joint batch."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import losses as mmdet_losses
from mmengine.model import BaseModel
from mmpretrain.models import losses as mmpretrain_losses
from mmpretrain.models.heads import LinearClsHead
from torch import nn

from lt_mm.models.heads import SupConHead
from lt_mm.structures.errors import UnsupportedHeadError
from tests.engine.loops import loss_cases
from tests.engine.loops.steps import assert_joint, gradients_of
from tests.models.heads import dense_data, test_whole_masks
from tests.models.heads.head_data import FLIP, SHAPE, ZOOM, cls_samples, det_sample
from tests.models.heads.zoo_kinds import KINDS as LEVEL_KINDS
from tests.models.heads.zoo_queries import QUERY_KINDS


class OneLayer(BaseModel):
    """A layer and a head on top, which gets what the stock networks give it.

    Args:
        head: The head.
        kind: What it is in ``dense_data.HEADS``; None for a classification head.
    """

    def __init__(self, head, kind=None):
        super().__init__()
        self.stem = nn.Conv2d(3, dense_data.CHANNELS, 1)
        self.head, self.kind = head, kind

    def forward(self, inputs, data_samples, mode):
        features = self.stem(inputs)
        if self.kind is None:
            return self.head.loss((features.mean(dim=(2, 3)),), data_samples)
        data_samples = dense_data.as_the_head_gets(self.kind, data_samples)
        if self.kind not in dense_data.DETR_LIKE:
            levels = tuple(F.avg_pool2d(features, stride) for stride in dense_data.STRIDES)
            return self.head.loss(levels, data_samples)
        queries = F.adaptive_avg_pool2d(features, (3, 4)).flatten(2).transpose(1, 2)
        hidden = torch.stack([queries, 2 * queries])
        if self.kind == 'DETR':
            return self.head.loss(hidden, data_samples)
        references = [queries.new_full((*queries.shape[:2], 4), 0.5)] * 3
        encoder = queries[..., : self.head.cls_out_channels], queries[..., :4].sigmoid()
        return self.head.loss(hidden, references, *encoder, data_samples)


# -- losses --------------------------------------------------------------------------------


def test_the_table_has_every_loss():
    found = loss_cases.loss_names(mmdet_losses)
    assert found == set(loss_cases.MMDET) | loss_cases.NOT_CALLED
    assert loss_cases.loss_names(mmpretrain_losses) == set(loss_cases.MMPRETRAIN)


def classifier(loss):
    torch.manual_seed(0)
    head = LinearClsHead(num_classes=loss_cases.CLASSES, in_channels=dense_data.CHANNELS, loss=loss)
    model = OneLayer(head).double().train()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def pictures(labels, size=(4, 5)):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(len(labels), 3, *size, generator=generator, dtype=torch.float64)
    return dict(inputs=inputs, data_samples=cls_samples(range(len(labels)), labels))


@pytest.mark.parametrize('case', loss_cases.CASES)
def test_a_loss_in_micro_batches(case):
    """Labels are spread unevenly, so that means over parts are no means of parts."""
    labels = [0, 3, 0, 2, 1, 5, 0, 7, 0, 4, 2, 6]
    model = classifier(loss_cases.CalledLoss(case))
    # MarginL2Loss knows float32 alone.
    log = assert_joint(model, pictures(labels), (2, 5, 12), 1e-6 if 'MarginL2' in case else 1e-9)
    assert float(log['loss'].detach()) != 0


class OwnMean(nn.Module):
    """What a user may write: it has a divisor of its own, and a weight that is trained."""

    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, pred, target, avg_factor=None, **kwargs):
        return self.criterion(pred, target) * (-self.log_scale).exp() + self.log_scale


@pytest.mark.parametrize('count', [1, 2, 3])
def test_a_loss_that_takes_its_own_mean(count):
    model = classifier(OwnMean())
    assert_joint(model, pictures([0, 3, 0, 2, 1]), [count])


class ExtraLoss(LinearClsHead):
    """A head with a loss beside that of its loss module."""

    def loss(self, feats, data_samples, **kwargs):
        losses = super().loss(feats, data_samples, **kwargs)
        return dict(losses, loss_norm=feats[-1].square().mean())


def test_a_loss_outside_the_heads_is_refused_by_name():
    model = OneLayer(ExtraLoss(3, dense_data.CHANNELS)).double()
    with pytest.raises(UnsupportedHeadError, match='loss_norm.*EpochBasedTrainLoop'):
        gradients_of(model, pictures([0, 1, 2, 0]), 2)
    pytest.importorskip('pytorch_metric_learning')
    model = OneLayer(SupConHead(3, dense_data.CHANNELS)).double()
    with pytest.raises(UnsupportedHeadError, match='loss_supcon'):
        gradients_of(model, pictures([0, 1, 1, 0]), 2)


# -- heads of single-stage detectors ---------------------------------------------------------


def detections():
    """Two sources in three replicas each; in some of the parts there is no object."""
    views = [(3, None), (3, FLIP), (8, None), (8, ZOOM), (3, None), (8, None)]
    samples = [det_sample(source, view=view) for source, view in views]
    samples[1] = det_sample(3, instances=())
    samples[4] = det_sample(3, instances=())
    inputs = torch.rand(6, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    return dict(inputs=inputs, data_samples=samples)


def dense_model(kind, **options):
    torch.manual_seed(0)
    head = dense_data.build(kind, **options)
    if kind == 'RPN':
        head.sampler.num = 10**4  # it draws nothing
    return OneLayer(head, kind).train()


@pytest.mark.parametrize('kind', [kind for kind in dense_data.HEADS if kind != 'DINO'])
def test_a_single_stage_head_in_micro_batches(kind):
    model = dense_model(kind, rho=1.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    log = assert_joint(model, detections(), (2, 3, 4, 6), tolerance=2e-5)
    assert log['loss_rpn_lt_cls' if kind == 'RPN' else 'loss_lt_cls'] > 0


@pytest.mark.parametrize('kind', ['DINO'])
def test_a_head_that_pads_its_queries_is_refused(kind):
    with pytest.raises(UnsupportedHeadError, match='DINOHead.*denoising.*EpochBasedTrainLoop'):
        gradients_of(dense_model(kind), detections(), 2)


ZOO = LEVEL_KINDS | QUERY_KINDS
REFUSED = {
    'YOLACT': 'YOLACTHead, which hands the positives',
    'CondInst': 'CondInstBboxHead, which hands the positives',
    'LAD': 'LADHead, which has a method loss',
    'DDQ': 'DDQDETRHead, which makes as many denoising',
    'Grounding DINO': 'GroundingDINOHead, which makes as many denoising',
    'GLIP': 'ATSSVLFusionHead, which has a method loss',
}


class OneLayerOfAKind(BaseModel):
    """A layer, and a head of the zoo on top."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.head = kind, kind.build(rho=1.0)
        self.stem = nn.Conv2d(3, dense_data.CHANNELS, 1)

    def forward(self, inputs, data_samples, mode):
        features, (height, width) = self.stem(inputs), SHAPE
        for sample in data_samples:  # what a data preprocessor and CenterNet's crop tell
            sample.set_metainfo(dict(batch_input_shape=SHAPE, border=(0, height, 0, width)))
        levels = tuple(F.adaptive_avg_pool2d(features, size) for size in self.kind.sizes)
        return self.head.loss(levels, data_samples)


@pytest.mark.parametrize('name', ZOO)
def test_a_head_of_the_zoo_in_micro_batches(name):
    """The joint gradient, or a refusal that names the head and says why."""
    model = OneLayerOfAKind(ZOO[name]).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    if name in REFUSED:
        with pytest.raises(UnsupportedHeadError, match=f'{REFUSED[name]}.*EpochBasedTrainLoop'):
            gradients_of(model, detections(), 2)
        return
    log = assert_joint(model, detections(), (2, 3), tolerance=2e-5)
    assert log['loss_lt_cls'] > 0


class WholeMasks(BaseModel):
    """A head with masks of whole images alone."""

    def __init__(self, kind):
        super().__init__()
        self.head = test_whole_masks.build(kind, rho=1.0)

    def forward(self, inputs, data_samples, mode):
        return test_whole_masks.losses_of(self.head, data_samples)


@pytest.mark.parametrize('kind', ['MaskFormer', *test_whole_masks.SOLO_HEADS])
def test_a_head_with_masks_of_whole_images_is_refused(kind):
    with pytest.raises(UnsupportedHeadError, match='loss.*cannot be put together from micro-'):
        samples = test_whole_masks.samples()
        gradients_of(
            WholeMasks(kind), dict(inputs=torch.zeros(len(samples)), data_samples=samples), 2
        )
