"""Frozen parts: in training with the real Runner, and as modules."""

import copy
import pickle

import pytest
import torch
from mmdet.models.necks import FPN
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lt_mm.datasets.converters import write_shapes_dataset
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.models.freezing import Frozen, freeze
from lt_mm.registry import MODELS
from tests.paths import CONFIGS
from tests.training_data import detector_options

SGD = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.1)
ADAMW = dict(type='AdamW', lr=0.001, weight_decay=0.1)
NECK = dict(
    type='mmdet.FPN', in_channels=[4, 8], out_channels=4, num_outs=3, norm_cfg=dict(type='BN')
)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes')
    write_shapes_dataset(root, num_train=4, num_val=2, image_size=(96, 96), seed=0)
    return root


def detector_config(shapes, work_dir, frozen, **more):
    """The small demo with batch normalisation in its neck too, and parts frozen."""
    cfg = Config.fromfile(str(CONFIGS / 'faster_rcnn_r18_demo.py'))
    no_evaluation = {
        f'{split}_{kind}': None
        for split in ('val', 'test')
        for kind in ('dataloader', 'cfg', 'evaluator')
    }
    cfg.merge_from_dict(
        detector_options(
            shapes,
            work_dir=str(work_dir),
            custom_hooks=[],
            **more,
            **{
                'train_dataloader.batch_size': 2,
                'model.neck.norm_cfg': dict(type='BN'),
                'model.train_cfg.rpn_proposal.max_per_img': 20,
                'optim_wrapper.clip_grad': None,
                'param_scheduler': [],
                'default_hooks.checkpoint.interval': 1,
            },
        )
    )
    cfg.merge_from_dict(no_evaluation)
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type in ('RandomResize', 'RandomCrop'):
            step['scale' if step.type == 'RandomResize' else 'crop_size'] = (96, 96)
    for part in frozen:
        cfg.model[part] = dict(type='lt_mm.Frozen', module=cfg.model[part])
    return cfg


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    """Weights of the stock detector, with statistics that a fresh one does not have."""
    folder = tmp_path_factory.mktemp('stock')
    init_default_scope('mmdet')
    model = MODELS.build(detector_config(shapes, folder, ()).model)
    model.init_weights()
    for key, value in model.state_dict().items():
        if 'running' in key:
            value.add_(torch.rand_like(value))
    torch.save(dict(state_dict=model.state_dict()), folder / 'stock.pth')
    return str(folder / 'stock.pth')


def by_part(state, other):
    """The keys that differ between two state dicts, by the part of the detector."""
    assert state.keys() == other.keys()
    changed = dict(backbone=set(), neck=set(), rpn_head=set(), roi_head=set())
    for key in state:
        if not torch.equal(state[key], other[key]):
            changed[key.split('.')[0]].add(key.split('.')[-1])
    return changed


@pytest.mark.parametrize(
    'frozen, optimizer, more',
    [
        (('neck', 'rpn_head'), SGD, {}),
        (
            ('backbone', 'neck', 'rpn_head'),
            ADAMW,
            {
                'custom_hooks': [dict(type='EMAHook', momentum=0.5)],
                'optim_wrapper.paramwise_cfg': dict(
                    norm_decay_mult=2.0, custom_keys={'neck': dict(lr_mult=3.0)}
                ),
            },
        ),
    ],
    ids=['neck-sgd', 'backbone-adamw'],
)
def test_frozen_parts_are_bit_equal_after_training_and_resuming(
    shapes, checkpoint, tmp_path, frozen, optimizer, more
):
    cfg = detector_config(
        shapes,
        tmp_path,
        frozen,
        **{'optim_wrapper.optimizer': dict(_delete_=True, **optimizer), 'load_from': checkpoint},
    )
    cfg.merge_from_dict(more)
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    runner = Runner.from_cfg(copy.deepcopy(cfg))
    runner.train()
    assert runner.model.rpn_head.train_cfg.sampler.num == 128  # the detector's own
    _check(before, runner.model.state_dict(), frozen)
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    _check(before, saved['state_dict'], frozen)
    if 'custom_hooks' in more:
        averaged = {
            key.removeprefix('module.'): value
            for key, value in saved['ema_state_dict'].items()
            if key != 'steps'
        }
        _check(before, averaged, frozen)
    cfg.merge_from_dict({'train_cfg.max_epochs': 2, 'resume': True, 'load_from': None})
    resumed = Runner.from_cfg(cfg)
    with checkpoint_loading():  # mmengine 0.10.7 alone cannot on torch 2.6 and later
        resumed.train()
    assert resumed.iter == 4
    _check(before, resumed.model.state_dict(), frozen)
    _check(runner.model.state_dict(), resumed.model.state_dict(), frozen)


def _check(before, after, frozen):
    for part, changed in by_part(before, after).items():
        if part in frozen:
            assert changed == set(), part
        else:
            assert {'weight', 'bias'} <= changed
            # The backbone trains on with moving statistics behind a frozen neck.
            assert ('running_mean' in changed) == (part == 'backbone')


def test_without_freezing_all_of_it_moves(shapes, checkpoint, tmp_path):
    """The control of the test above: what is compared there does change."""
    runner = Runner.from_cfg(
        detector_config(
            shapes,
            tmp_path,
            (),
            **{'optim_wrapper.optimizer': dict(_delete_=True, **SGD), 'load_from': checkpoint},
        )
    )
    runner.train()
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    changed = by_part(before, runner.model.state_dict())
    moving = {'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'}
    assert changed['backbone'] == changed['neck'] == moving
    assert changed['rpn_head'] == changed['roi_head'] == {'weight', 'bias'}


def test_a_frozen_detector_predicts_as_the_stock_one(shapes, checkpoint, tmp_path):
    init_default_scope('mmdet')
    parts = ('backbone', 'neck', 'rpn_head')
    frozen = MODELS.build(detector_config(shapes, tmp_path, parts).model)
    stock = MODELS.build(detector_config(shapes, tmp_path, ()).model)
    for model in (stock, frozen):
        load_checkpoint(model.eval(), checkpoint, strict=True)
    images = torch.rand(1, 3, 64, 96)
    for one, other in zip(_raw(frozen, images), _raw(stock, images)):
        assert torch.equal(one, other)
    frozen.train()
    assert [name for name, part in frozen.named_children() if part.training] == [
        'data_preprocessor',
        'roi_head',
    ]
    # Frozen first, initialised second.
    frozen.init_weights()
    assert not any(p.requires_grad for part in parts for p in getattr(frozen, part).parameters())


def _raw(model, images):
    maps = model.extract_feat(images)
    scores, deltas = model.rpn_head(maps)
    return [*maps, *scores, *deltas]


def maps():
    return [torch.rand(2, 4, 8, 8, requires_grad=True), torch.rand(2, 8, 4, 4, requires_grad=True)]


def test_frozen_module_is_the_stock_module():
    stock = MODELS.build(NECK)
    frozen = Frozen(dict(NECK))
    assert isinstance(frozen, FPN) and type(frozen).__name__ == 'FrozenFPN'
    assert list(frozen.state_dict()) == list(stock.state_dict())
    for neck in (stock, frozen):
        torch.manual_seed(3)
        neck.init_weights()
    frozen_state = frozen.state_dict()
    assert all(torch.equal(value, frozen_state[key]) for key, value in stock.state_dict().items())
    x = maps()
    for one, other in zip(frozen.train()(x), stock.eval()(x)):
        assert torch.equal(one, other)


def test_gradient_goes_through_a_frozen_module():
    frozen, x = Frozen(dict(NECK)), maps()
    sum(feature.square().sum() for feature in frozen(x)).backward()
    assert all(feature.grad.abs().sum() > 0 for feature in x)
    assert all(parameter.grad is None for parameter in frozen.parameters())


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=['deepcopy', 'pickle']
)
@pytest.mark.parametrize(
    'cfg',
    [NECK, dict(type='lt_mm.TorchvisionBackbone', name='shufflenet_v2_x0_5', nodes=['stage2'])],
    ids=['FPN', 'TorchvisionBackbone'],
)
def test_copies_are_frozen_too(cfg, copied):
    frozen = Frozen(dict(cfg))
    twin = copied(frozen).train()
    assert type(twin) is type(frozen)
    assert not any(module.training for module in twin.modules())
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    x = torch.rand(1, 3, 32, 32) if 'name' in cfg else maps()
    assert all(torch.equal(one, other) for one, other in zip(frozen(x), twin(x)))


def test_parts_of_a_module():
    init_default_scope('mmdet')
    backbone = Frozen(
        dict(type='ResNet', depth=18, base_channels=4, norm_eval=False, stem_channels=4),
        parts=['conv1', 'bn1', 'layer1.0'],
    )
    backbone.train()
    frozen = ('conv1.', 'bn1.', 'layer1.0.')
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    sum(feature.sum() for feature in backbone(torch.rand(2, 3, 32, 32))).backward()
    optimizer.step()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name
    assert backbone.layer1[1].bn1.training and not backbone.layer1[0].bn1.training


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class _StemAndNeck(nn.Module):
    def __init__(self, neck):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.neck = neck

    def forward(self, images):
        # The coarsest level alone: most parameters of the neck are not reached.
        low = self.stem(images)
        return self.neck([low, torch.cat([low, low], 1)[..., ::2, ::2]])[-1].sum()


def _steps_twice(neck, freeze_late=False):
    model = DistributedDataParallel(_StemAndNeck(neck))
    if freeze_late:
        freeze(neck)
    for _ in range(2):
        model(torch.rand(2, 3, 8, 8)).backward()


def test_distributed_training_does_not_wait_for_frozen_parameters(process_group):
    _steps_twice(Frozen(dict(NECK)))
    with pytest.raises(RuntimeError, match='Expected to have finished reduction'):
        _steps_twice(MODELS.build(NECK), freeze_late=True)


def test_errors_name_the_remedy():
    built = MODELS.build(NECK)
    with pytest.raises(ValueError, match="'fpn'.*lateral_convs, fpn_convs"):
        Frozen(dict(NECK), parts=['fpn'])
    with pytest.raises(ValueError, match="''"):
        Frozen(dict(NECK), parts=[''])
    with pytest.raises(TypeError, match='train_cfg.*pass its config'):
        Frozen(built, train_cfg=None)
    with pytest.raises(TypeError, match='has FrozenMixin already'):
        Frozen(Frozen(built))
