"""The gradients of the terms beside the stock losses', on a trained demo detector."""

import contextlib
import math
import runpy

import numpy as np
import pytest
import torch
from mmdet.models import FasterRCNN
from mmengine.runner import load_checkpoint

from lt_mm.apis import term_gradients
from lt_mm.apis.term_gradients import measure_term_gradients, table_of
from lt_mm.engine import launch
from lt_mm.engine.checkpoints import checkpoint_loading
from tests.paths import CONFIGS, TOOLS
from tests.training_data import detector_options, train_demo

CONFIG = str(CONFIGS / 'faster_rcnn_r18_lt_demo.py')
TOOL = TOOLS / 'analysis' / 'term_gradients.py'


@pytest.fixture(scope='module')
def checkpoint(shapes, tmp_path_factory):
    """Of the stock detector, after two steps."""
    work_dir = tmp_path_factory.mktemp('stock')
    train_demo(shapes, work_dir, 'faster_rcnn_r18_demo.py')
    return str(work_dir / 'epoch_1.pth')


@pytest.fixture(scope='module')
def measure(shapes, checkpoint, tmp_path_factory):
    work_dir = str(tmp_path_factory.mktemp('measured'))

    def call(config=CONFIG, num_batches=2, **more):
        return measure_term_gradients(
            config,
            checkpoint,
            num_batches,
            seed=3,
            work_dir=work_dir,
            cfg_options=detector_options(shapes, **more),
        )

    return call


@contextlib.contextmanager
def built_runners():
    """Collects the runners that are built in its block."""
    with pytest.MonkeyPatch.context() as patch:
        runners = []
        build = term_gradients.build_runner
        patch.setattr(
            term_gradients, 'build_runner', lambda cfg: runners.append(build(cfg)) or runners[-1]
        )
        yield runners


@pytest.fixture(scope='module')
def once(measure):
    """What one batch gives, and the runner."""
    with built_runners() as runners:
        return measure(num_batches=1), *runners


def gradient_of(model, data, keys):
    """By ``backward`` on the sum of some losses, all parameters as one vector."""
    losses = model(**data, mode='loss')
    model.zero_grad()
    sum(
        value.sum() if isinstance(value, torch.Tensor) else sum(each.sum() for each in value)
        for name, value in losses.items()
        if name in keys
    ).backward()
    return losses, np.concatenate(
        [
            np.zeros(weight.numel())
            if weight.grad is None
            else weight.grad.double().flatten().numpy()
            for weight in model.parameters()
            if weight.requires_grad
        ]
    )


def test_a_config_with_an_averaged_model(once, measure):
    """The checkpoint is loaded though EMAHook's model is made only when training begins."""
    found = measure(num_batches=1, custom_hooks=[dict(type='EMAHook')])
    assert found['terms'] == once[0]['terms']


def test_equals_backward_of_each_loss(once, shapes, checkpoint, tmp_path):
    found, _ = once
    cfg = launch.load_config(CONFIG, str(tmp_path), detector_options(shapes))
    cfg.randomness = dict(seed=3)
    runner = launch.build_runner(cfg)
    with checkpoint_loading():
        load_checkpoint(runner.model, checkpoint, map_location='cpu')
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader, seed=3)))
    model = runner.model.train()
    data = model.data_preprocessor(batch, training=True)
    state = torch.get_rng_state(), np.random.get_state()

    def gradient(*keys):
        torch.set_rng_state(state[0]), np.random.set_state(state[1])
        return gradient_of(model, data, keys)

    losses, stock = gradient('loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox')
    assert set(found['terms']) == {'loss_lt_cls', 'loss_lt_bbox'}
    for name, term in found['terms'].items():
        _, own = gradient(name)
        _, counterpart = gradient(name.replace('lt_', ''))
        norms = np.linalg.norm(own), np.linalg.norm(stock)
        assert term['value'] == pytest.approx(float(losses[name].detach()), rel=1e-5)
        assert term['value'] > 0
        assert term['ratio'] == pytest.approx(norms[0] / norms[1], rel=1e-4)
        own_ratio = norms[0] / np.linalg.norm(counterpart)
        assert term['own_ratio'] == pytest.approx(own_ratio, rel=1e-4)
        assert term['own_ratio'] > term['ratio'] > 0
        assert term['cosine'] == pytest.approx(own @ stock / norms[0] / norms[1], abs=1e-4)
    (head,) = found['heads'].values()
    assert list(found['heads']) == ['roi_head.bbox_head']
    assert head['pairs'] == float(losses['lt_num_paired'])
    assert 0 < head['score'] < 1 and 0 <= head['unsure'] <= 1


@pytest.mark.slow
def test_ratios_are_proportional_to_rho(measure):
    once = measure()['terms']
    more = measure(**{'model.roi_head.rho_cls': 4.0, 'model.roi_head.rho_bbox': 0.0})
    assert more['num_batches'] == 2 and more['seed'] == 3
    cls, bbox = (more['terms'][f'loss_lt_{kind}'] for kind in ('cls', 'bbox'))
    assert cls['ratio'] == pytest.approx(4 * once['loss_lt_cls']['ratio'], rel=1e-4)
    assert cls['cosine'] == pytest.approx(once['loss_lt_cls']['cosine'], abs=1e-4)
    assert cls['own_ratio'] == pytest.approx(4 * once['loss_lt_cls']['own_ratio'], rel=1e-4)
    assert bbox == dict(value=0, ratio=0, own_ratio=0, cosine=None)
    (row,) = (line for line in table_of(more).splitlines() if 'loss_lt_bbox' in line)
    assert row.split() == ['loss_lt_bbox', '0.0000', '0.0000', '0.0000', '-']


class Losses(torch.nn.Module):
    """A model whose losses are given by its one weight w = 2: their gradients are known."""

    def __init__(self, **factors):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))
        self.factors = factors

    def data_preprocessor(self, data, training):
        return data

    def forward(self, mode):
        return {name: factor * self.weight for name, factor in self.factors.items()}

    def parse_losses(self, losses):
        return sum(losses.values()), {}


@pytest.mark.parametrize(
    'factors, found',
    [
        # Term, all stock losses, the stock loss of the same kind and predictions.
        (dict(loss_cls=4.0, loss_bbox=6.0, loss_lt_cls=1.0), dict(loss_lt_cls=(0.1, 0.25))),
        (
            {'s0.loss_cls': 4.0, 's1.loss_cls': 6.0, 's1.loss_lt_cls': 3.0},
            {'s1.loss_lt_cls': (0.3, 0.5)},
        ),
        (
            dict(loss_rpn_cls=8.0, loss_cls=2.0, loss_rpn_lt_cls=1.0, loss_lt_cls=3.0),
            dict(loss_rpn_lt_cls=(0.1, 0.125), loss_lt_cls=(0.3, 1.5)),
        ),
        (dict(loss=5.0, loss_lt_cls=1.0), dict(loss_lt_cls=(0.2, 0.2))),
        (dict(loss_mask=5.0, loss_lt_mask=1.0), dict(loss_lt_mask=(0.2, 0.2))),
        ({'loss_cls': 1.0, 'd0.loss_cls': 3.0, 'loss_lt_cls': 2.0}, dict(loss_lt_cls=(0.5, 2.0))),
        (dict(loss_cls=5.0, loss_bbox=0.0, loss_lt_bbox=1.0), dict(loss_lt_bbox=(0.2, None))),
        (dict(loss_other=5.0, loss_lt_cls=1.0), dict(loss_lt_cls=(0.2, None))),
    ],
    ids=['head', 'cascade', 'RPN', 'classifier', 'masks', 'DETR', 'no boxes', 'no counterpart'],
)
def test_terms_are_compared_with_their_own_stock_loss(factors, found):
    """That of an RPN's term was once counted among the stock losses."""
    step = term_gradients._step(Losses(**factors), {})
    ratios = {name: (compared.ratio, own_ratio) for name, (_, compared, own_ratio) in step.items()}
    assert ratios == {name: pytest.approx(pair) for name, pair in found.items()}


def test_batches_without_a_term_do_not_count(measure, once, monkeypatch):
    """Such as those that leave a cascade early and have no losses of its later stages."""
    first = once[0]['terms']
    loss, calls = FasterRCNN.loss, []

    def without_in_the_second(self, *args):
        losses = loss(self, *args)
        calls.append(losses.pop('loss_lt_bbox') if calls else losses['loss_lt_bbox'])
        return losses

    monkeypatch.setattr(FasterRCNN, 'loss', without_in_the_second)
    found = measure(num_batches=2)['terms']
    assert len(calls) == 2 and all(float(each.detach()) > 0 for each in calls)
    assert found['loss_lt_bbox'] == first['loss_lt_bbox']
    assert found['loss_lt_cls'] != first['loss_lt_cls']


@pytest.mark.slow
def test_what_cannot_be_compared_is_named(measure):
    with pytest.raises(ValueError, match='loss_lt_cls.*no gradient.*model.roi_head.rho'):
        measure(**{'model.roi_head.rho': 0.0})
    with pytest.raises(ValueError, match='FasterRCNN, has no LossTransformHead'):
        measure(str(CONFIGS / 'faster_rcnn_r18_demo.py'))
    with pytest.raises(ValueError, match='num_batches is 99; expected at most 4'):
        measure(num_batches=99)
    with pytest.raises(ValueError, match='num_batches is 0'):
        measure(num_batches=0)


def test_heads_record_no_more_afterwards(measure, once):
    """Whether the measurement succeeds or, for want of batches, fails."""
    with built_runners() as runners, pytest.raises(ValueError, match='at most 1'):
        measure(num_batches=2, **{'train_dataloader.dataset.indices': 2})
    for runner in (once[1], *runners):
        assert not any('lt_recorder' in vars(module) for module in runner.model.modules())


def test_tool_prints_the_table(shapes, checkpoint, tmp_path, capsys):
    options = {
        key: value for key, value in detector_options(shapes).items() if key != 'custom_hooks'
    }
    arguments = [
        CONFIG,
        checkpoint,
        '--num-batches',
        1,
        '--seed',
        3,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *(f'{key}={value}'.replace(' ', '') for key, value in options.items()),
    ]
    runpy.run_path(str(TOOL))['main']([str(argument) for argument in arguments])
    printed = capsys.readouterr().out
    assert '1 training batches, seed 3' in printed
    for name in ('loss_lt_cls', 'loss_lt_bbox', 'roi_head.bbox_head'):
        (row,) = (line.split() for line in printed.splitlines() if line.startswith(name + ' '))
        assert all(math.isfinite(float(value)) for value in row[1:])
