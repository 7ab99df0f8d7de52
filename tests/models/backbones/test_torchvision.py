"""torchvision's backbones against torchvision's own models on the same weights."""

import copy
import functools
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import get_model

from lt_mm.models.backbones.torchvision import TorchvisionBackbone
from lt_mm.registry import MODELS, TASK_UTILS
from tests.paths import CONFIGS

FOUR_LEVELS = [[32], [64], [128], [256], [512]]
TWO_LEVELS = [[32, 64, 128, 256, 512]] * 2
# The paper's table: learning rate, sizes of the anchors of each level.
TABLE = {
    'convnext_tiny': (0.0025, TWO_LEVELS),
    'densenet121': (0.01, FOUR_LEVELS),
    'efficientnet_b4': (0.01, TWO_LEVELS),
    'googlenet': (0.01, FOUR_LEVELS),
    'inception_v3': (0.0025, TWO_LEVELS),
    'mnasnet1_0': (0.0025, TWO_LEVELS),
    'resnet50': (0.01, FOUR_LEVELS),
    'shufflenet_v2_x1_0': (0.01, TWO_LEVELS),
    'wide_resnet50_2': (0.01, FOUR_LEVELS),
}
SMALL = dict(name='shufflenet_v2_x1_0', nodes=['stage2', 'conv5'])
SMALLEST_OF_INCEPTION = (75, 97)


@functools.cache
def config_of(name):
    return Config.fromfile(str(CONFIGS / 'pennfudan' / f'mask_rcnn_{name}.py'))


def whole_model(name, backbone):
    """torchvision's classifier with the backbone's weights, and the names of its tail."""
    arguments = {}
    if name in ('googlenet', 'inception_v3'):
        arguments = dict(aux_logits=False, init_weights=False)
    with torch.device('meta'):  # initialisation takes longer than the rest
        model = get_model(name, weights=None, **arguments)
    model = model.to_empty(device='cpu')
    for norm, own in zip(batch_norms(model), batch_norms(backbone)):
        norm.momentum = own.momentum
    tail, unexpected = model.load_state_dict(backbone.state_dict(), strict=False)
    assert unexpected == []
    return model, tail


def batch_norms(module):
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def nodes_of(backbone):
    return backbone._forwards.recipe.nodes


def maps_by_hooks(model, nodes, images):
    """The outputs of modules during torchvision's own forward pass."""
    maps = {}

    def keep(node):
        return lambda module, inputs, output: maps.update({node: output.clone()})

    # DenseNet's last ReLU is a function.
    modules = {node: 'features' if node == 'relu' else node for node in nodes}
    handles = [
        model.get_submodule(module).register_forward_hook(keep(node))
        for node, module in modules.items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return [F.relu(maps[node]) if node == 'relu' else maps[node] for node in nodes]


@pytest.fixture(scope='module', params=[*TABLE, 'mobilenet_v3_large'])
def case(request):
    """Name, built backbone, images of an odd size."""
    if request.param in TABLE:
        arguments = config_of(request.param).model.backbone
    else:  # what torchvision's Faster R-CNN takes of it
        arguments = dict(
            type='lt_mm.TorchvisionBackbone',
            name=request.param,
            nodes=['features.13', 'features.16'],
        )
    torch.manual_seed(0)
    size = SMALLEST_OF_INCEPTION if request.param == 'inception_v3' else (33, 65)
    return request.param, MODELS.build(arguments), torch.rand(2, 3, *size)


def test_maps_and_statistics_are_those_of_torchvision(case):
    """In both modes, with the same random numbers for stochastic depth."""
    name, backbone, images = case
    before = copy.deepcopy(backbone.state_dict())
    model, tail = whole_model(name, backbone)
    for mode in (False, True):
        torch.manual_seed(1)
        found = backbone.train(mode)(images)
        torch.manual_seed(1)
        with torch.no_grad():
            expected = maps_by_hooks(model.train(mode), nodes_of(backbone), images)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other)
    after, theirs = backbone.state_dict(), model.state_dict()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert all('running' in key or 'num_batches' in key for key in moved)
    assert bool(moved) == (name != 'convnext_tiny')  # normalises by layer
    for key in moved:
        torch.testing.assert_close(after[key], theirs[key])
    # Nothing waits for a gradient that never comes: the tail is gone.
    sum(feature.square().sum() for feature in found).backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []
    assert tail and all(key.startswith(('fc.', 'classifier.', 'features.norm5.')) for key in tail)


@pytest.mark.parametrize('name', TABLE)
def test_schedule_of_the_table(name):
    cfg = config_of(name)
    optimizer = dict(type='SGD', lr=TABLE[name][0], momentum=0.9, weight_decay=0.0005)
    assert cfg.optim_wrapper.optimizer == optimizer
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (4, 18)
    assert cfg.param_scheduler[1].milestones == [12, 16]
    assert cfg.param_scheduler[1].gamma == 0.1


def test_fpn_anchors_and_roi_extractors_fit_the_maps(case):
    name, backbone, images = case
    if name not in TABLE:
        assert (backbone.out_channels, backbone.strides) == ((160, 960), (32, 32))
        return
    model = config_of(name).model
    init_default_scope('mmdet')
    assert backbone.out_channels == tuple(model.neck.in_channels)
    for extractor in ('bbox_roi_extractor', 'mask_roi_extractor'):
        assert tuple(model.roi_head[extractor].featmap_strides) == backbone.strides
    levels = MODELS.build(model.neck)(backbone(images))
    anchors = TASK_UTILS.build(model.rpn_head.anchor_generator)
    assert len(levels) == anchors.num_levels
    strides = [stride[0] for stride in anchors.strides]
    assert strides == [*backbone.strides, 2 * backbone.strides[-1]]
    for boxes, sizes in zip(anchors.base_anchors, TABLE[name][1]):
        width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
        found = {
            (round(float(w * h) ** 0.5), round(float(h / w), 3)) for w, h in zip(width, height)
        }
        assert found == {(size, ratio) for size in sizes for ratio in (0.5, 1.0, 2.0)}


def test_maps_come_in_the_order_of_the_nodes():
    torch.manual_seed(0)
    backbone = TorchvisionBackbone('shufflenet_v2_x1_0', ['conv5', 'stage2'])
    assert (backbone.out_channels, backbone.strides) == ((1024, 116), (32, 8))
    maps = backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [(1024, 2, 2), (116, 8, 8)]


@pytest.mark.parametrize(
    'name, node',
    [('convnext_tiny', 'features.1'), ('googlenet', 'conv3'), ('shufflenet_v2_x1_0', 'stage2')],
)
def test_pickled_and_copied_backbones_follow_the_mode(name, node):
    backbone = TorchvisionBackbone(name, [node])
    images = torch.rand(2, 3, 33, 65)
    for copied in (lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy):
        twin = copied(backbone)
        for mode in (True, False):
            torch.manual_seed(1)
            expected = backbone.train(mode)(images)[0]
            torch.manual_seed(1)
            assert torch.equal(twin.train(mode)(images)[0], expected)
        with torch.no_grad():  # its own weights, in its own forward pass
            for parameter in twin.parameters():
                parameter.add_(torch.rand_like(parameter))
        assert not torch.allclose(twin(images)[0], expected)
        assert torch.equal(backbone(images)[0], expected)


def test_functional_dropout_follows_the_mode():
    """Tracing makes a constant of ``F.dropout(training=...)``: one graph a mode."""
    backbone = TorchvisionBackbone(
        'densenet121', ['features.denseblock1'], options=dict(drop_rate=0.5), norm_eval=True
    )
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(backbone(images)[0], backbone(images)[0])
    backbone.eval()
    assert torch.equal(backbone(images)[0], backbone(images)[0])
    backbone.train()
    assert not torch.equal(backbone(images)[0], backbone(images)[0])


def test_initialisation_is_that_of_torchvision():
    torch.manual_seed(0)
    expected = get_model(SMALL['name'], weights=None).state_dict()
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(**SMALL)
    backbone.init_weights()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_pretrained_init_loads_a_torchvision_state_dict(tmp_path, prefix):
    weights = get_model(SMALL['name'], weights=None).state_dict()
    torch.save(
        {(prefix or '') + key: value for key, value in weights.items()}, tmp_path / 'weights.pth'
    )
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    backbone = MODELS.build(
        dict(
            SMALL,
            type='lt_mm.TorchvisionBackbone',
            init_cfg=init_cfg if prefix is None else dict(init_cfg, prefix=prefix),
        )
    )
    before = copy.deepcopy(backbone.state_dict())
    backbone.init_weights()
    assert not torch.equal(before['conv1.0.weight'], weights['conv1.0.weight'])
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_published_weights_bring_their_own_scaling_of_the_input(tmp_path, monkeypatch):
    """GoogLeNet's weights, from torchvision's cache; pickling keeps the scaling too."""
    weights = get_model('googlenet', weights=None, init_weights=False)
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    torch.save(weights.state_dict(), folder / 'googlenet-1378be20.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    backbone = TorchvisionBackbone('googlenet', ['conv3'], weights='IMAGENET1K_V1').eval()
    images = torch.rand(1, 3, 64, 64)
    weights.eval().transform_input = True
    weights.aux_logits = False
    expected = maps_by_hooks(weights, ['conv3'], images)[0]
    torch.testing.assert_close(backbone(images)[0], expected)
    copied = pickle.loads(pickle.dumps(backbone))
    torch.testing.assert_close(copied(images)[0], expected)
    weights.transform_input = False
    assert not torch.allclose(maps_by_hooks(weights, ['conv3'], images)[0], expected)


def test_norm_eval_and_norm_momentum():
    backbone = TorchvisionBackbone(**SMALL, norm_eval=True, norm_momentum=0.25)
    norms = batch_norms(backbone.train())
    assert norms and not any(norm.training for norm in norms)
    assert {norm.momentum for norm in norms} == {0.25}
    assert backbone.training and backbone.stage2.training
    before = copy.deepcopy(backbone.state_dict())
    backbone(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_momentum_of_mnasnet_lets_statistics_settle():
    backbone = MODELS.build(config_of('mnasnet1_0').model.backbone)
    assert {norm.momentum for norm in batch_norms(backbone)} == {0.1}
    norm, *_ = batch_norms(TorchvisionBackbone('mnasnet1_0', ['layers.8']))
    assert norm.momentum == pytest.approx(0.0003)


def test_norm_cfg_builds_stock_norms():
    backbone = TorchvisionBackbone(
        'resnet18', ['layer4'], norm_cfg=dict(type='BN', eps=0.0, requires_grad=False)
    )
    assert {norm.eps for norm in batch_norms(backbone)} == {0.0}
    assert not backbone.bn1.weight.requires_grad and backbone.conv1.weight.requires_grad
    grouped = TorchvisionBackbone('resnet18', ['layer4'], norm_cfg=dict(type='GN', num_groups=32))
    assert isinstance(pickle.loads(pickle.dumps(grouped)).bn1, torch.nn.GroupNorm)


@pytest.mark.parametrize(
    'change, error, match',
    [
        (dict(name='shufflenet'), ValueError, "'shufflenet'.*shufflenet_v2_x1_0"),
        (dict(name='fasterrcnn_resnet50_fpn'), ValueError, 'classifier'),
        (dict(nodes=['stage5']), ValueError, 'stage5.*stage4.0'),
        (dict(nodes=[]), ValueError, r'nodes is \[\].*stage2.0'),
        (dict(nodes=['conv5', 'conv5']), ValueError, 'different names'),
        (dict(nodes=['stage2', 'stage2.1']), ValueError, 'stage2.1.*Leave one'),
        (dict(norm_cfg=dict(type='BN')), TypeError, 'norm_layer.*norm_cfg'),
        (dict(options=dict(depth=3)), TypeError, 'depth.*options'),
    ],
)
def test_errors_name_what_there_is(change, error, match):
    with pytest.raises(error, match=f'(?s){match}'):
        TorchvisionBackbone(**{**SMALL, **change})
