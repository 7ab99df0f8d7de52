"""NASNetMobile against the published network."""

import sys

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS

from lt_mm.models.backbones.nasnet_mobile import NASNetMobile, _AverageWithoutPadding


@pytest.fixture(scope='module')
def net():
    pytest.importorskip('timm', reason="needs the extra 'baselines'")
    return NASNetMobile()


def classifier(num_classes=1000):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='lt_mm.NASNetMobile'),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=num_classes, in_channels=1056),
        )
    )


def test_number_of_parameters(net):
    """Keras' NASNetMobile: 5,326,716 in all, 5,289,978 of them trained."""
    trained = sum(p.numel() for p in net.parameters()) + 1056 * 1000 + 1000
    running = sum(b.numel() for name, b in net.named_buffers() if '.running_' in name)
    assert trained == 5_289_978
    assert trained + running == 5_326_716


def fill(net):
    """Weights that are a function of their name's rank and their place."""
    state = net.state_dict()
    for i, name in enumerate(sorted(n for n in state if 'num_batches' not in n)):
        value = state[name]
        places = torch.arange(value.numel(), dtype=torch.float64)
        wave = torch.cos(places * 0.7 + i).view(value.shape)
        if value.dim() == 4:
            value.copy_(wave * (2 / value[0].numel()) ** 0.5)
        elif name.endswith(('.bias', '.running_mean')):
            value.copy_(0.1 * wave)
        else:
            value.copy_(1 + 0.2 * wave)


def test_features_are_those_of_the_published_network():
    """The numbers were computed with ``nasnetamobile`` of ``pretrainedmodels`` 0.7.4.

    It is the port in which the published weights were tested; state dict names are the
    same, so that ``fill`` gave it the same weights.
    """
    pytest.importorskip('timm', reason="needs the extra 'baselines'")
    net = NASNetMobile().double()
    net.eval()
    fill(net)
    places = torch.arange(3 * 64 * 64, dtype=torch.float64)
    with torch.no_grad():
        (features,) = net(1.5 * torch.cos(places * 0.05).view(1, 3, 64, 64))
    found = features[0, [10, 500, 1000], 0, 1]
    expected = [0.0558989045944179, 0.1574447943284877, 0.4204990365052894]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0
    )
    expected = [[0.1392054986335897, 0.1366344833497732], [0.1428646314698612, 0.1453369882362230]]
    torch.testing.assert_close(
        features[0].mean(dim=0), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize('size', [7, 8])
def test_averages_leave_the_padding_out(net, size):
    """TensorFlow's 'SAME': odd sizes are padded on both sides, even ones at the end."""
    pools = [m for m in net.modules() if isinstance(m, _AverageWithoutPadding)]
    assert len(pools) == 4  # one in each cell that halves its input
    x = torch.randn(1, 2, size, size, dtype=torch.float64)
    start = -1 if size % 2 else 0
    expected = torch.empty(1, 2, 4, 4, dtype=torch.float64)
    for row in range(4):
        for column in range(4):
            top, left = start + 2 * row, start + 2 * column
            inside = x[..., max(top, 0) : top + 3, max(left, 0) : left + 3]
            expected[..., row, column] = inside.mean(dim=(2, 3))
    for pool in pools:
        torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize('size, side', [((64, 96), (2, 3)), ((65, 67), (2, 3))])
def test_stride_is_32(net, size, side):
    """The first layer does not pad: 65 pixels give as many as 64, 67 one more."""
    net.eval()
    with torch.no_grad():
        (features,) = net(torch.randn(1, 3, *size))
    assert features.shape == (1, 1056, *side)


def test_every_parameter_gets_gradient():
    pytest.importorskip('timm', reason="needs the extra 'baselines'")
    model = classifier(num_classes=3)
    model.init_weights()
    model.train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    model.eval()
    assert not any(module.training for module in model.modules())


def test_published_checkpoint_fills_backbone_and_head(net, tmp_path):
    """As ``load_from`` reads it: bare names, the classifier called ``last_linear``."""
    published = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    published['last_linear.weight'] = torch.randn(1000, 1056)
    published['last_linear.bias'] = torch.randn(1000)
    torch.save(published, tmp_path / 'published.pth')
    model = classifier()
    load_checkpoint(model, str(tmp_path / 'published.pth'), strict=True)
    assert torch.equal(model.head.fc.weight, published['last_linear.weight'])
    assert torch.equal(model.head.fc.bias, published['last_linear.bias'])
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, published[name]), name
    # A checkpoint of this classifier is left as it is.
    again = classifier()
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again.head.fc.bias, published['last_linear.bias'])


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match=r"pip install 'lt_mm\[baselines\]'"):
        NASNetMobile()
