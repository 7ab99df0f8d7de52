"""MMEngine's FlexibleRunner: interrupted runs go on, and checkpoints are whole."""

import signal
from types import SimpleNamespace

import pytest
from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.hooks import EMAHook
from mmengine.registry import STRATEGIES

from lt_mm.engine.checkpoints import check_strategy, is_complete
from lt_mm.engine.hooks import AtomicCheckpointHook, MemoryHook, PreemptionHook, ResumeHook
from lt_mm.engine.hooks.preemption_hook import REQUEUE_EXIT_CODE
from tests.engine.interrupted_runs import assert_same_weights, output, run, trace, write_config
from tests.training_data import write_pictures


def test_an_interrupted_run_ends_bit_equal(tmp_path):
    """Killed while it writes, and stopped in mid-epoch; with what a head remembers."""
    options = {
        'runner_type': 'FlexibleRunner',
        'strategy': dict(type='SingleDeviceStrategy'),
        'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
        'model.head.memory': dict(momentum=0.7),
    }
    config = write_config(write_pictures(tmp_path / 'pictures'), tmp_path, **options)
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert run(config, whole) == 0, output(whole)
    # Half of the bytes of the first checkpoint; the file of the memory comes before it.
    assert run(config, cut, write_event=3) == -signal.SIGKILL
    assert not list(cut.glob('*.pth')) and len(list(cut.glob('*.pth.*.partial'))) == 1
    stop = dict(number=signal.SIGUSR1, at=4)
    assert run(config, cut, interrupt=stop) == REQUEUE_EXIT_CODE, output(cut)
    assert is_complete(cut / 'preempted_iter_5.pth')
    assert run(config, cut) == 0, output(cut)
    assert trace(cut, 'start') == ['start 0', 'start 0', 'start 5']
    steps = trace(whole, 'step')
    assert len(steps) == 9 and trace(cut, 'step')[-4:] == steps[-4:]
    assert_same_weights(cut / 'epoch_3.pth', whole / 'epoch_3.pth')
    assert sorted(path.name for path in cut.glob('*.pth')) == ['epoch_3.pth']


def runner_with(strategy, hooks=(), load_from=None):
    cls = STRATEGIES.get(strategy) if isinstance(strategy, str) else strategy
    return SimpleNamespace(strategy=object.__new__(cls), hooks=hooks, _load_from=load_from)


@pytest.mark.parametrize('name', ['DeepSpeedStrategy', 'FSDPStrategy', 'ColossalAIStrategy'])
def test_strategies_with_files_of_their_own_are_refused(name):
    runner = runner_with(name)
    for hook in (AtomicCheckpointHook(), ResumeHook(), PreemptionHook()):
        with pytest.raises(ValueError, match=f"type='{name}'.*DDPStrategy.*CheckpointHook"):
            hook.before_train(runner)
    runner.model, runner.iter = SimpleNamespace(named_modules=list), 0
    MemoryHook().before_train(runner)  # nothing is remembered


@pytest.mark.parametrize('cls', [SingleDeviceStrategy, DDPStrategy])
def test_strategies_that_write_one_file_are_taken(cls):
    check_strategy(runner_with(cls))
    check_strategy(runner_with(cls, hooks=[EMAHook()]))
    check_strategy(SimpleNamespace())  # a stock Runner
    with pytest.raises(ValueError, match=r"a\.pth.*EMAHook.*runner_type='Runner'"):
        check_strategy(runner_with(cls, hooks=[EMAHook()], load_from='a.pth'))
