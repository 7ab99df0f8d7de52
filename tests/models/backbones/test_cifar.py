"""The CIFAR networks against the papers: sizes by formula, values by naive references."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import nn

from lt_mm.models.backbones.cifar import CifarDenseNet, CifarResNet


def classifier(backbone, in_channels):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=in_channels),
        )
    )


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def conv(in_channels, out_channels, size=3):
    return in_channels * out_channels * size**2


def resnet_parameters(n):
    """6n + 2 layers without a parameter in a shortcut; each convolution has a BN."""
    total = conv(3, 16) + 2 * 16
    before = 16
    for width in (16, 32, 64):
        for _ in range(n):
            total += conv(before, width) + conv(width, width) + 4 * width
            before = width
    return total + 64 * 10 + 10


def densenet_parameters(layers, growth):
    """3 * layers + 4 layers, BN before each convolution and before the pooling."""
    total, width = conv(3, 16), 16
    for block in range(3):
        for _ in range(layers):
            total += 2 * width + conv(width, growth)
            width += growth
        total += 2 * width
        if block < 2:
            total += conv(width, width, size=1)
    return total + width * 10 + 10


# The exact numbers are those of the public implementations, the millions the papers'.
@pytest.mark.parametrize(
    'depth, exact, millions',
    [
        (20, 269_722, 0.27),
        (32, 464_154, 0.46),
        (44, 658_586, 0.66),
        (56, 853_018, 0.85),
        (110, 1_727_962, 1.7),
    ],
)
def test_resnet_has_the_papers_size(depth, exact, millions):
    model = classifier(dict(type='lt_mm.CifarResNet', depth=depth), 64)
    assert count(model) == exact == resnet_parameters((depth - 2) // 6)
    assert exact / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.005)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth


def test_densenet_has_the_papers_size():
    model = classifier(dict(type='lt_mm.CifarDenseNet', depth=40, growth_rate=12), 448)
    assert count(model) == 1_019_722 == densenet_parameters(12, 12)
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == 40 and model.backbone.feat_dim == 448


def test_depths_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r'depth is 40; expected 6n \+ 2') as error:
        CifarResNet(depth=40)
    assert 'depth=44' in str(error.value)
    with pytest.raises(ValueError, match=r'depth is 41; expected 3n \+ 4'):
        CifarDenseNet(depth=41)
    with pytest.raises(ValueError, match='depth is 4;'):
        CifarDenseNet(depth=4)


def option_a(x, stride, out_channels):
    """Option A, pixel by pixel: the pixels at multiples of the stride, zeros elsewhere."""
    count, channels, height, width = x.shape
    out = np.zeros((count, out_channels, -(-height // stride), -(-width // stride)))
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            out[:, :channels, row, column] = x[:, :, row * stride, column * stride]
    return out


@pytest.mark.parametrize('size', [(8, 8), (7, 5)])
def test_shortcuts_are_option_a(size):
    """With the residual branch at zero a block is its shortcut."""
    net = CifarResNet(depth=8, zero_init_residual=True)
    net.init_weights()
    net.eval()
    for stage, (before, after) in ((net.layer2, (16, 32)), (net.layer3, (32, 64))):
        x = torch.rand(2, before, *size)  # not negative, so the last ReLU keeps it
        expected = option_a(x.numpy().astype(np.float64), 2, after)
        torch.testing.assert_close(stage[0](x).double(), torch.from_numpy(expected))
    assert net.layer1[0].downsample is None
    assert not list(net.layer2[0].downsample.parameters())


def test_resnet_is_initialised_by_he():
    net = CifarResNet(depth=20)
    net.init_weights()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (9 * module.out_channels)) ** 0.5
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.15)
    # The paper does not start the blocks as identities; MMPretrain's ResNet does.
    assert torch.equal(net.layer1[0].norm2.weight, torch.ones(16))


def test_densenet_is_initialised_by_he():
    net = CifarDenseNet(depth=13)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 7.0)
    net.init_weights()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            std = float(module.weight.detach().std())
            assert std == pytest.approx((2 / fan_out) ** 0.5, rel=0.2)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))


def naive_densenet(net, x):
    """Section 3 of the paper, with a list of maps and numbered layers."""

    def bn_relu_conv(norm, convolution, x):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        x = (x - norm.running_mean[:, None, None]) * scale[:, None, None]
        x = (x + norm.bias[:, None, None]).clamp(min=0)
        if convolution is None:
            return x
        return nn.functional.conv2d(x, convolution.weight, padding=convolution.kernel_size[0] // 2)

    x = nn.functional.conv2d(x, net.stem.weight, padding=1)
    for block in range(3):
        for layer in net.stages[block].block:
            x = torch.cat([x, bn_relu_conv(layer[0], layer[2], x)], dim=1)
        transition = net.transitions[block]
        if block == 2:
            return bn_relu_conv(transition[0], None, x)
        x = bn_relu_conv(transition.norm, transition.conv, x)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))


def test_densenet_against_the_definition():
    net = CifarDenseNet(depth=10, growth_rate=3).double()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.2 * ('running_var' in name))
    net.eval()
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(net(x)[0], naive_densenet(net, x))


@pytest.mark.parametrize(
    'backbone, in_channels',
    [
        (dict(type='lt_mm.CifarResNet', depth=8), 64),
        (dict(type='lt_mm.CifarDenseNet', depth=10, growth_rate=4), 40),
    ],
)
def test_every_parameter_gets_gradient_and_modes_switch(backbone, in_channels):
    model = classifier(backbone, in_channels)
    model.init_weights()
    x = torch.randn(4, 3, 32, 32)
    (features,) = model.backbone(x)
    assert features.shape == (4, in_channels, 8, 8)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    # In training mode a sample depends on its batch; in evaluation it does not.
    assert not torch.allclose(model(x)[:2], model(x[:2]), atol=1e-4)
    model.eval()
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(x)[:2], model(x[:2]))
    model.train()
    assert all(module.training for module in model.modules())


def test_resnet_keeps_the_options_of_the_stock_class():
    net = CifarResNet(depth=8, frozen_stages=1, out_indices=(0, 1, 2))
    shapes = [tuple(x.shape) for x in net(torch.randn(1, 3, 32, 32))]
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith(('conv1', 'bn1', 'layer1')) for name in frozen)
