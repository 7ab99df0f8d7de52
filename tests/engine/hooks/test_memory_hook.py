"""What heads remember is saved beside checkpoints, and resumed runs go on with it."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from lt_mm.apis.term_gradients import measure_term_gradients
from lt_mm.engine import launch
from lt_mm.engine.checkpoints import UntrustedCheckpointError
from lt_mm.engine.hooks import MemoryHook
from lt_mm.engine.hooks.memory_hook import memories_of
from tests.training_data import classifier_config, recorded, write_pictures


@HOOKS.register_module()
class StopAt(Hook):
    """Ends the run as an error does, after a checkpoint."""

    priority = 'LOWEST'

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            raise KeyboardInterrupt


def memory_config(pictures, work_dir, hooks=(), **more):
    """A wrapped classifier below the stock sampler: 12 images, 3 batches an epoch."""
    cfg = classifier_config(pictures, work_dir)
    cfg.merge_from_dict(
        {
            'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
            'train_dataloader.batch_size': 4,
            'model.head.memory': dict(momentum=0.5),
            'train_cfg.max_epochs': 3,
            'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, by_epoch=False),
            'custom_hooks': [
                dict(type='RecordOutputs'),
                dict(type='lt_mm.ResumeHook', seed_steps=True),
                *hooks,
            ],
            **more,
        }
    )
    return cfg


def run(cfg, resume=None):
    """What tools/train.py does with a config."""
    launch.add_hooks(cfg)
    launch.choose_resumed_checkpoint(cfg, resume)
    runner = launch.build_runner(cfg)
    runner.train()
    return runner


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / 'pictures')


def test_a_resumed_run_ends_bit_equal(pictures, tmp_path):
    whole = run(memory_config(pictures, tmp_path / 'whole'))
    steps = recorded(whole)
    # A stock sampler: no pair in the first epoch, and one for each image afterwards.
    assert [step['lt_num_paired'] for step in steps] == [0] * 3 + [4] * 6
    assert all(step['loss_lt_cls'] > 0 for step in steps[3:])
    work_dir = tmp_path / 'cut'
    with pytest.raises(KeyboardInterrupt):
        run(memory_config(pictures, work_dir, [dict(type='StopAt', at=5)]))
    resumed = run(memory_config(pictures, work_dir), resume='auto')
    assert recorded(resumed) == steps[5:]
    log = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    assert 'head remembers 12 instances' in log
    for (name, mine), (_, theirs) in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().items()
    ):
        assert torch.equal(mine, theirs), name
    states = [memories_of(each.model)['head'].state_dict() for each in (whole, resumed)]
    assert len(states[0]['keys']) == 12
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_checkpoints_are_those_of_the_stock_head_and_few_files_are_kept(pictures, tmp_path):
    run(memory_config(pictures, tmp_path))
    files = sorted(tmp_path.glob('*.memory'))
    assert [file.name.split('_')[1] for file in files] == ['8', '9']
    checkpoint = torch.load(tmp_path / 'iter_9.pth', weights_only=False)
    assert checkpoint['meta']['lt_memory'] == files[1].name
    assert set(checkpoint) == {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}
    assert not [key for key in checkpoint['state_dict'] if 'memory' in key]
    states = torch.load(files[1], weights_only=True)
    assert list(states) == ['head'] and len(states['head']['keys']) == 12


@pytest.mark.parametrize('fault', ['missing', 'damaged', 'unnamed'])
def test_without_the_file_the_memory_begins_empty_and_says_so(
    fault, pictures, tmp_path, monkeypatch
):
    run(memory_config(pictures, tmp_path, **{'train_cfg.max_epochs': 2}))
    for file in tmp_path.glob('*.memory'):
        if fault == 'missing':
            file.unlink()
        elif fault == 'damaged':
            file.write_bytes(file.read_bytes()[:-100])
    if fault == 'unnamed':
        checkpoint = torch.load(tmp_path / 'iter_6.pth', weights_only=False)
        del checkpoint['meta']['lt_memory']
        torch.save(checkpoint, tmp_path / 'iter_6.pth')
    said = []
    monkeypatch.setattr(
        'lt_mm.engine.hooks.memory_hook.print_log', lambda message, *_: said.append(message)
    )
    resumed = run(memory_config(pictures, tmp_path), resume=str(tmp_path / 'iter_6.pth'))
    assert [step['lt_num_paired'] for step in recorded(resumed)] == [0, 0, 0]
    (said,) = said
    reason = dict(missing='there is no iter_6_', damaged='cannot be loaded', unnamed='names no')
    assert 'The memory begins empty' in said and reason[fault] in said


def test_a_file_that_would_run_code_is_refused(pictures, tmp_path):
    run(memory_config(pictures, tmp_path, **{'train_cfg.max_epochs': 1}))
    path = tmp_path / torch.load(tmp_path / 'iter_3.pth', weights_only=False)['meta']['lt_memory']
    torch.save({'head': print}, path)
    with pytest.raises(UntrustedCheckpointError, match='print'):
        run(memory_config(pictures, tmp_path), resume='auto')


def test_a_run_without_a_memory_saves_none(pictures, tmp_path):
    cfg = memory_config(pictures, tmp_path, **{'model.head.memory': None, 'model.head.rho': 0.0})
    run(cfg)
    assert not list(tmp_path.glob('*.memory'))
    assert 'lt_memory' not in torch.load(tmp_path / 'iter_9.pth', weights_only=False)['meta']


def test_the_gradients_of_the_term_are_measured_with_the_memory(pictures, tmp_path):
    cfg = memory_config(pictures, tmp_path / 'run', **{'train_cfg.max_epochs': 2})
    run(cfg)
    path = tmp_path / 'config.py'
    cfg.dump(path)
    checkpoint = str(tmp_path / 'run' / 'iter_6.pth')
    report = measure_term_gradients(str(path), checkpoint, 2, work_dir=str(tmp_path / 'measured'))
    assert report['heads']['head']['pairs'] == 4
    assert report['terms']['loss_lt_cls']['ratio'] > 0
    for file in (tmp_path / 'run').glob('*.memory'):
        file.unlink()
    with pytest.raises(ValueError, match='nothing is paired'):
        measure_term_gradients(str(path), checkpoint, 2, work_dir=str(tmp_path / 'empty'))


def test_fewer_than_two_files_are_refused():
    with pytest.raises(ValueError, match='max_keep is 1; expected 2'):
        MemoryHook(max_keep=1)
