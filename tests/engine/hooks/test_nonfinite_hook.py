"""Trainings that become NaN stop, and leave a checkpoint with finite weights."""

import copy
import math
import signal

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmpretrain.models import CrossEntropyLoss
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lt_mm.apis import train as api
from lt_mm.engine.checkpoints import load_weights_only, nonfinite_weights, read_last_checkpoint
from lt_mm.engine.hooks.nonfinite_hook import LossWatch
from lt_mm.engine.hooks.preemption_hook import REQUEUE_EXIT_CODE
from tests.ranks import run_ranks
from tests.training_data import classifier_config, write_pictures

BATCHES = 6


@MODELS.register_module()
class SpoiledLoss(CrossEntropyLoss):
    """From step ``at`` on, or in it alone, the value or only its gradient is not finite."""

    def __init__(self, at, number='nan', once=False, gradient_alone=False, **kwargs):
        super().__init__(**kwargs)
        self.at, self.number, self.once = at, float(number), once
        self.gradient_alone, self.step = gradient_alone, 0

    def forward(self, cls_score, *args, **kwargs):
        self.step += 1
        loss = super().forward(cls_score, *args, **kwargs)
        if self.step != self.at and (self.once or self.step < self.at):
            return loss
        if self.gradient_alone:
            return loss + (cls_score - cls_score.detach()).square().sum().sqrt()
        return loss * self.number


@OPTIM_WRAPPERS.register_module()
class SkippingOptimWrapper(OptimWrapper):
    """Leaves out steps whose gradients are not finite, as loss scaling does."""

    loss_scaler = object()

    def step(self, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group['params']]
        if all(grad is None or grad.isfinite().all() for grad in grads):
            super().step(**kwargs)


@HOOKS.register_module()
class SignalAt(Hook):
    """What the hook that stops on request finds at a step."""

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures') / 'images')


def config(pictures, folder, spoil, **more):
    """Six batches an epoch; the log is written too rarely to say anything."""
    options = {
        'train_dataloader.batch_size': 4,
        'train_dataloader.sampler.num_repeats': 2,
        'train_cfg.max_epochs': 3,
        'model.head.head.loss': dict(type='SpoiledLoss', loss_weight=1.0, **spoil),
        'default_hooks.logger.interval': 100,
        'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1),
        'custom_imports': dict(imports=[__name__]),
        'custom_hooks': [],
    }
    return classifier_config(pictures, folder, **{**options, **copy.deepcopy(more)})


def train(pictures, folder, spoil, **more):
    path = folder / 'config.py'
    config(pictures, folder, spoil, **more).dump(str(path))
    return api.train(str(path), work_dir=str(folder))


def saved(folder):
    """The checkpoints, and the one that ``last_checkpoint`` names, whose weights are finite."""
    last = read_last_checkpoint(folder)
    weights = load_weights_only(last)['state_dict'].values() if last else []
    assert all(weight.isfinite().all() for weight in weights if weight.is_floating_point())
    return sorted(path.name for path in folder.glob('*.pth')), last and last.rpartition('/')[2]


ITERATIONS = {
    'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=12),
    'train_dataloader.sampler.type': 'lt_mm.InfiniteGroupedRepeatAugSampler',
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 4,
}


@pytest.mark.parametrize('number', ['nan', 'inf'])
def test_epochs_stop_before_the_next_checkpoint(pictures, tmp_path, number):
    with pytest.raises(FloatingPointError, match='loss is not finite at step 8.*epoch_1.pth'):
        train(pictures, tmp_path, dict(at=8, number=number))
    assert saved(tmp_path) == (['epoch_1.pth'], 'epoch_1.pth')


def test_iterations_stop_before_the_next_checkpoint(pictures, tmp_path):
    with pytest.raises(FloatingPointError, match='loss is not finite at step 6.*iter_4.pth'):
        train(pictures, tmp_path, dict(at=6), **ITERATIONS)
    assert saved(tmp_path) == (['iter_4.pth'], 'iter_4.pth')


def test_a_gradient_of_the_last_step(pictures, tmp_path):
    """All losses of the training were finite; the weights are not."""
    spoil = dict(at=2 * BATCHES, gradient_alone=True)
    with pytest.raises(FloatingPointError, match='not finite after step 12, although.*epoch_1.pth'):
        train(pictures, tmp_path, spoil, **{'train_cfg.max_epochs': 2})
    assert saved(tmp_path) == (['epoch_1.pth'], 'epoch_1.pth')


def test_the_option_to_go_on(pictures, tmp_path):
    hooks = [dict(type='lt_mm.NonFiniteHook', stop=False), dict(type='SignalAt', at=15)]
    with pytest.raises(SystemExit) as end:
        train(pictures, tmp_path, dict(at=8), custom_hooks=hooks)
    assert end.value.code == REQUEUE_EXIT_CODE
    assert saved(tmp_path) == (['epoch_1.pth'], 'epoch_1.pth')
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('loss is not finite at step 8') == 1 and 'epoch_2.pth is not saved' in log


def test_by_its_name_with_the_stock_runner_and_hook(pictures, tmp_path):
    hooks = [dict(type='lt_mm.NonFiniteHook')]
    cfg = config(pictures, tmp_path, dict(at=8), custom_hooks=hooks)
    with pytest.raises(FloatingPointError, match='loss is not finite at step 8.*epoch_1.pth'):
        Runner.from_cfg(cfg).train()
    assert saved(tmp_path)[0] == ['epoch_1.pth']


def message_of_rank(rank, pictures, folder):
    own = folder / f'rank{rank}'
    own.mkdir()
    with pytest.raises(FloatingPointError) as error:
        train(pictures, own, dict(at=6 if rank else 1000), **{'train_cfg.max_epochs': 4})
    return str(error.value)


@pytest.mark.slow
def test_two_ranks_of_which_one_has_the_loss(pictures, tmp_path):
    """Both stop at the end of the second epoch, and name the loss, not what it spoiled."""
    for message in run_ranks(message_of_rank, 2, pictures, tmp_path, timeout=180):
        assert 'loss is not finite at step 6' in message


def test_a_step_that_the_loss_scaler_leaves_out_is_a_warning(pictures, tmp_path):
    train(
        pictures, tmp_path, dict(at=8, once=True), **{'optim_wrapper.type': 'SkippingOptimWrapper'}
    )
    assert saved(tmp_path)[1] == 'epoch_3.pth'
    assert 'step 8; the loss scaler' in next(tmp_path.glob('*/*.log')).read_text()


def test_the_loss_that_did_it_is_found_without_waiting_for_the_device():
    class NoWait(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert 'local_scalar' not in str(func), 'the device is asked'
            return func(*args, **(kwargs or {}))

    watch = LossWatch()
    with NoWait():
        for step in range(1, 9):
            bad = torch.tensor(math.inf if step >= 5 else 1.0)
            other = {'loss_mask': bad / bad} if step % 2 else {}  # some steps have no masks
            outputs = dict(loss_bbox=bad, loss_cls=torch.ones(()), lt_pairs=bad, **other)
            watch.add(dict(outputs, loss=sum(outputs.values())), step)
    assert watch.first() == (5, ['loss_bbox', 'loss_mask']) and watch.is_bad_now()
    watch.clear()
    watch.add(dict(loss=torch.ones(())), 9)
    assert watch.first() is None and not watch.is_bad_now()


def test_weights_that_are_not_finite():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer('mask', torch.tensor([0.0, -math.inf]))
    assert nonfinite_weights(model) == []
    model[0].bias.data[1] = math.nan
    model[1].running_var[0] = math.inf
    assert nonfinite_weights(model) == ['0.bias', '1.running_var']
    assert nonfinite_weights(nn.Identity()) == []
