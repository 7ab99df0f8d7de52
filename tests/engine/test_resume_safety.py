"""What a checkpoint says is data: a run that is resumed from it executes and removes nothing."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from lt_mm.apis import train as api
from lt_mm.engine.checkpoints import checkpoint_loading, load_weights_only
from lt_mm.engine.hooks import AtomicCheckpointHook
from tests.engine.interrupted_runs import validation, write_config
from tests.engine.test_checkpoints import FakeRunner
from tests.training_data import write_pictures


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The config and the work directory of a run of one epoch."""
    folder = tmp_path_factory.mktemp('trained')
    pictures = write_pictures(folder / 'pictures')
    options = {'train_cfg.max_epochs': 1, 'default_hooks.checkpoint.save_best': 'auto'}
    config = write_config(pictures, folder, **validation(pictures), **options)
    api.train(str(config), work_dir=str(folder / 'run'))
    return config, folder / 'run' / 'epoch_1.pth'


def resume(config, work_dir, **options):
    return api.train(
        str(config), str(work_dir), 'auto', cfg_options={'train_cfg.max_epochs': 2, **options}
    )


def test_configs_in_a_checkpoint_are_not_executed(trained, tmp_path):
    """All the strings that MMEngine executes: at --resume, and in its inferencers."""
    config, saved = trained
    code = f'import os\nos.mkdir({str(tmp_path / "ran")!r})\n'
    checkpoint = torch.load(saved, weights_only=False)
    checkpoint['meta'].update(config=code, cfg=code)
    checkpoint['message_hub']['runtime_info']['cfg'] = code
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    runner = resume(config, tmp_path)
    assert runner.epoch == 2
    assert not (tmp_path / 'ran').exists()
    # The run does not hand the code on in its own checkpoints either.
    written = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert code not in str(written['meta']) + str(written['message_hub']['runtime_info'])
    assert written['message_hub']['runtime_info']['cfg'] == runner.cfg.pretty_text


@pytest.mark.parametrize('content', [dict(meta=3), dict(message_hub=None), [1], torch.ones(2)])
def test_files_of_another_form_are_loaded_as_they_are(content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    assert str(load_weights_only(tmp_path / 'a.pth')) == str(content)


def test_the_rest_of_the_meta_stays(tmp_path):
    weights = nn.Linear(2, 1).state_dict()
    meta = dict(config='1 / 0', dataset_meta=dict(classes=('a',)))
    torch.save(dict(meta=meta, state_dict=weights), tmp_path / 'a.pth')
    with checkpoint_loading():
        loaded = load_checkpoint(nn.Linear(2, 1), str(tmp_path / 'a.pth'))
    assert loaded['meta'] == dict(dataset_meta=dict(classes=('a',)))


def test_files_elsewhere_are_not_removed(trained, tmp_path):
    """The stock hook removes whatever the checkpoint calls its best checkpoint."""
    config, saved = trained
    precious = tmp_path / 'precious'
    precious.mkdir()
    (precious / 'file').write_text('')
    checkpoint = torch.load(saved, weights_only=False)
    info = checkpoint['message_hub']['runtime_info']
    info.update(best_ckpt=str(precious), best_score=-1.0, keep_ckpt_ids=['/../precious', 1])
    (tmp_path / 'run').mkdir()
    torch.save(checkpoint, tmp_path / 'run' / 'epoch_1.pth')
    resume(config, tmp_path / 'run')
    assert (precious / 'file').exists()
    found = sorted(path.name for path in (tmp_path / 'run').glob('*.pth'))
    assert found == ['best_accuracy_top1_epoch_2.pth', 'epoch_2.pth']


def test_the_best_checkpoint_of_the_run_is_removed(tmp_path):
    runner = FakeRunner(tmp_path)
    (tmp_path / 'best_old.pth').write_bytes(b'')
    runner.message_hub.update_info('best_ckpt', os.path.relpath(tmp_path / 'best_old.pth'))
    hook = AtomicCheckpointHook(interval=1, save_best='acc')
    hook.before_train(runner)
    hook.after_val_epoch(runner, dict(acc=0.5))
    hook.after_train(runner)
    assert [path.name for path in Path(tmp_path).glob('best*')] == ['best_acc_epoch_0.pth']
