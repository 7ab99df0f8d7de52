"""Checkpoints: written whole, chosen whole, loaded without running code."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as stock_module
from torch import nn

from lt_mm.apis import train as api
from lt_mm.engine.checkpoints import (
    AtomicBackend,
    UntrustedCheckpointError,
    checkpoint_loading,
    find_resumable,
    is_complete,
    load_weights_only,
    write_last_checkpoint,
)
from lt_mm.engine.hooks import AtomicCheckpointHook
from lt_mm.registry import HOOKS
from tests.engine.interrupted_runs import write_config
from tests.training_data import write_pictures


class Malicious:
    """Unpickling it calls a function."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class CallsThroughGetattr:
    """Unpickling it gets an attribute of HistoryBuffer that is not allowed."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def checkpoint(num_iters=3, **more):
    return dict(
        meta=dict(epoch=1, iter=num_iters),
        optimizer={},
        message_hub={},
        state_dict=nn.Linear(2, 1).state_dict(),
        **more,
    )


def write(path, content=None, share=1.0):
    torch.save(content or checkpoint(), path)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(share * len(content))])
    return str(path)


def damage(path, content):
    """Writes a checkpoint in which one bit of a weight is wrong."""
    written = bytearray(Path(write(path, content)).read_bytes())
    weight = content['state_dict']['weight'].numpy().tobytes()
    written[written.index(weight)] ^= 1
    path.write_bytes(written)
    assert not torch.equal(
        torch.load(path)['state_dict']['weight'], content['state_dict']['weight']
    )


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    backend, path = AtomicBackend(), tmp_path / 'new' / 'file'
    backend.put(b'before', path)
    backend.put_text('ä', tmp_path / 'text', encoding='latin-1')
    assert (tmp_path / 'text').read_bytes() == b'\xe4'
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda descriptor: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backend.put(b'after', path)
    assert path.read_bytes() == b'before'
    backend.put(b'after', path)
    assert path.read_bytes() == b'after' and os.listdir(path.parent) == ['file']


class FakeRunner(SimpleNamespace):
    """As much of a runner as the hook of checkpoints uses; records which files were there."""

    def __init__(self, work_dir):
        info = {}
        super().__init__(
            work_dir=str(work_dir),
            epoch=0,
            iter=0,
            seen=[],
            model=torch.nn.Identity(),
            logger=SimpleNamespace(info=print, warning=print),
            message_hub=SimpleNamespace(
                runtime_info=info, get_info=info.get, update_info=info.__setitem__
            ),
        )

    def save_checkpoint(self, out_dir, filename, *args, backend_args, **kwargs):
        self.seen.append(sorted(path.name for path in Path(out_dir).glob('*.pth')))
        AtomicBackend().put(b'', Path(out_dir, filename))
        self.backend = backend_args


@pytest.mark.parametrize('cls', [CheckpointHook, AtomicCheckpointHook])
def test_old_checkpoints_are_removed_last(cls, tmp_path):
    """The stock hook has a moment without any checkpoint; the other hook has none."""
    runner = FakeRunner(tmp_path)
    hook = cls(interval=1, max_keep_ckpts=1, save_best='acc')
    hook.before_train(runner)
    for accuracy in (0.1, 0.2, 0.3):
        hook.after_train_epoch(runner)
        runner.epoch += 1
        hook.after_val_epoch(runner, dict(acc=accuracy))
    kept = ['best_acc_epoch_3.pth', 'epoch_3.pth']
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == kept
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')
    # Each epoch writes its checkpoint, the best one, and its checkpoint with the score.
    third = runner.seen[6:]
    if cls is CheckpointHook:
        assert third[0] == ['best_acc_epoch_2.pth'] and third[1] == ['epoch_3.pth']
    else:
        assert third[0] == ['best_acc_epoch_2.pth', 'epoch_2.pth']
        assert third[1] == ['best_acc_epoch_2.pth', 'epoch_3.pth']
        assert runner.backend == dict(backend='lt_mm_atomic')


def test_the_last_checkpoint_is_resumed_from_if_it_is_complete(tmp_path, caplog):
    first, second = write(tmp_path / 'a.pth'), write(tmp_path / 'b.pth', checkpoint(6))
    write_last_checkpoint(tmp_path, first)
    assert find_resumable(tmp_path) == first
    write(tmp_path / 'a.pth', share=0.5)
    assert not is_complete(first) and is_complete(second)
    assert find_resumable(tmp_path) == second


@pytest.mark.parametrize('last', [None, '', 'moved/b.pth'])
def test_without_it_the_complete_one_with_most_iterations_is(tmp_path, last):
    write(tmp_path / 'z.pth', checkpoint(3))
    expected = write(tmp_path / 'b.pth', checkpoint(6))
    write(tmp_path / 'half.pth', checkpoint(9), share=0.5)
    write(tmp_path / 'empty.pth', share=0)
    best = checkpoint(12)
    del best['optimizer']
    write(tmp_path / 'best_acc.pth', best)
    damage(tmp_path / 'bit.pth', checkpoint(15))
    if last is not None:
        (tmp_path / 'last_checkpoint').write_text(last)
    assert find_resumable(tmp_path) == expected
    assert find_resumable(tmp_path / 'missing') is None


# ---------------------------------------------------------------- loading


def test_what_mmengine_puts_into_checkpoints_is_loaded(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = checkpoint(
        log_scalars=OrderedDict(loss=history),
        best=np.float64(0.5),
        count=np.int64(3),
        palette=np.arange(6, dtype=np.uint8).reshape(2, 3),
        names=np.array(['a', 'bc']),
        mask=np.array([True, False]),
        dataset_meta=ConfigDict(a=dict(b=[1, 2])),
    )
    loaded = load_weights_only(write(tmp_path / 'a.pth', content))
    assert loaded['log_scalars']['loss'].mean() == 2.0
    assert loaded['best'] == 0.5 and loaded['count'] == 3
    for key in ('palette', 'names', 'mask'):
        assert np.array_equal(loaded[key], content[key])
        assert loaded[key].dtype == content[key].dtype
    assert loaded['dataset_meta'].a.b == [1, 2]


def test_numpys_names_of_both_major_versions_are_known(tmp_path):
    """A file of numpy 1 is loaded with numpy 2, and the other way round."""
    content = pickle.dumps(np.arange(3.0), protocol=2)
    (here,) = {name for name in (b'numpy._core', b'numpy.core') if name in content}
    for name in (b'numpy._core.multiarray', b'numpy.core.multiarray'):
        path = tmp_path / 'legacy.pth'
        torch.save(np.arange(3.0), path, _use_new_zipfile_serialization=False)
        stored = path.read_bytes()
        assert here + b'.multiarray' in stored
        path.write_bytes(stored.replace(here + b'.multiarray', name))
        assert load_weights_only(str(path)).tolist() == [0.0, 1.0, 2.0]


@pytest.fixture
def malicious(tmp_path):
    """A checkpoint of a linear layer that makes a folder when it is loaded."""
    content = checkpoint(extra=Malicious(tmp_path / 'ran'))
    return write(tmp_path / 'malicious.pth', content)


@pytest.mark.filterwarnings('ignore:Environment variable TORCH_FORCE_NO')
def test_code_in_a_checkpoint_does_not_run(malicious, tmp_path):
    model, stock = nn.Linear(2, 1), dict(CheckpointLoader._schemes)
    with checkpoint_loading():
        with pytest.raises(UntrustedCheckpointError) as error:
            load_checkpoint(model, malicious)
        with pytest.raises(pickle.UnpicklingError):  # whoever loads it otherwise
            torch.load(malicious, weights_only=False)
    for part in (malicious, 'posix.mkdir', '--trust-checkpoint', 'weights_only=False'):
        assert part in str(error.value)
    assert not (tmp_path / 'ran').exists()
    assert CheckpointLoader._schemes == stock
    with checkpoint_loading(trusted=True):
        load_checkpoint(model, malicious)
    assert (tmp_path / 'ran').is_dir()
    (tmp_path / 'ran').rmdir()
    if hasattr(stock_module, '_safe_torch_load'):  # what newer MMEngines do by themselves
        load_checkpoint(model, malicious)
        assert (tmp_path / 'ran').is_dir()
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ


def test_getattr_in_a_checkpoint_reaches_nothing_else(tmp_path):
    path = write(tmp_path / 'a.pth', checkpoint(extra=CallsThroughGetattr()))
    with pytest.raises(UntrustedCheckpointError, match='HistoryBuffer.__init__'):
        load_weights_only(path)


def test_weights_from_addresses_are_guarded_too(malicious, monkeypatch):
    """``torchvision://`` and others use torch's own loader of addresses."""
    monkeypatch.setattr(
        'mmengine.runner.checkpoint.load_url',
        lambda url, **kwargs: torch.load(malicious, weights_only=False),
    )
    with checkpoint_loading(), pytest.raises(UntrustedCheckpointError, match='https://'):
        load_checkpoint(nn.Linear(2, 1), 'https://example.com/malicious.pth')


def test_a_variable_that_trusts_all_files_does_not_count(malicious, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with checkpoint_loading(), pytest.raises(UntrustedCheckpointError):
        load_checkpoint(nn.Linear(2, 1), malicious)
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'


def test_a_missing_file_is_named():
    with checkpoint_loading(), pytest.raises(FileNotFoundError, match='nowhere.pth'):
        load_checkpoint(nn.Linear(2, 1), 'nowhere.pth')


# ---------------------------------------------------------------- the tools


@pytest.fixture
def built(monkeypatch):
    """The configs that the tools build runners from; these runners do nothing."""
    configs = []

    def build(cfg):
        configs.append(cfg)
        loop = SimpleNamespace(dataloader=SimpleNamespace(batch_sampler=None, dataset=[]))
        model = SimpleNamespace(data_preprocessor=None)
        return SimpleNamespace(train_loop=loop, hooks=[], model=model, train=lambda: None)

    monkeypatch.setattr(api, 'build_runner', build)
    monkeypatch.setattr(api, '_check', lambda runner, loader: None)
    return configs


def train(tmp_path, text='', **arguments):
    path = tmp_path / 'config.py'
    path.write_text('train_dataloader = dict(dataset=dict())\n' + text)
    api.train(str(path), work_dir=str(tmp_path), **arguments)


@pytest.mark.parametrize('setting', ['resume', 'load_from', 'model.backbone.init_cfg'])
def test_no_way_into_the_tools_runs_code(malicious, tmp_path, setting):
    config = write_config(write_pictures(tmp_path / 'pictures'), tmp_path)
    options = {'load_from': malicious, 'resume': setting == 'resume'}
    if setting == 'model.backbone.init_cfg':
        options = {setting: dict(type='Pretrained', checkpoint=malicious)}
    with pytest.raises(UntrustedCheckpointError, match='posix.mkdir'):
        api.train(str(config), work_dir=str(tmp_path), cfg_options=options)
    assert not (tmp_path / 'ran').exists()


def test_tools_make_interruptions_harmless(built, tmp_path):
    train(tmp_path)
    train(
        tmp_path,
        "stock = dict(type='CheckpointHook', interval=7)\n"
        'default_hooks = dict(checkpoint=stock)\n'
        "custom_hooks = [dict(type='ResumeHook', seed_steps=True)]\n",
    )
    train(tmp_path, "default_hooks = dict(checkpoint=dict(type='Other'))\n")
    own = ('PreemptionHook', 'ResumeHook', 'MemoryHook', 'NonFiniteHook')
    hooks = [dict(type=f'lt_mm.{name}') for name in own]
    assert [cfg.custom_hooks for cfg in built] == [
        hooks,
        [dict(type='ResumeHook', seed_steps=True), hooks[0], *hooks[2:]],
        hooks,
    ]
    assert [cfg.default_hooks.checkpoint for cfg in built] == [
        dict(type='lt_mm.AtomicCheckpointHook', interval=1),
        dict(type='lt_mm.AtomicCheckpointHook', interval=7),
        dict(type='Other'),
    ]
    assert all(HOOKS.get(hook['type'].split('.')[1]) for hook in hooks)


def test_resume_without_a_checkpoint_starts_from_the_weights_of_the_config(built, tmp_path):
    text = "load_from = 'pretrained.pth'\n"
    train(tmp_path, text, resume='auto')
    saved = write(tmp_path / 'epoch_1.pth')
    train(tmp_path, text, resume='auto')
    train(tmp_path, text, resume='other.pth')
    train(tmp_path, 'resume = True\n')
    assert [(cfg.resume, cfg.load_from) for cfg in built] == [
        (False, 'pretrained.pth'),
        (True, saved),
        (True, 'other.pth'),
        (True, saved),
    ]
