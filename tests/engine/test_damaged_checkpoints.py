"""A damaged checkpoint costs the iterations since the one before it, and nothing else."""

import locale
import os
import pickle
import runpy
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from torch import nn

from lt_mm.apis import train as api
from lt_mm.engine.checkpoints import (
    DamagedCheckpointError,
    UntrustedCheckpointError,
    checkpoint_loading,
    find_resumable,
    load_weights_only,
    read_last_checkpoint,
    resuming,
    write_last_checkpoint,
)
from lt_mm.engine.launch import choose_resumed_checkpoint
from tests.engine.interrupted_runs import write_config
from tests.engine.test_checkpoints import Malicious, checkpoint, write
from tests.paths import REPOSITORY
from tests.training_data import write_pictures


def flip(content, position, bit):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


@pytest.fixture
def two(tmp_path):
    """An older checkpoint and a newer one, which last_checkpoint names."""
    older = write(tmp_path / 'epoch_1.pth', checkpoint(3))
    history = OrderedDict(loss=HistoryBuffer([1.0, 3.0], [1, 1]))
    newer = Path(write(tmp_path / 'epoch_2.pth', checkpoint(6, log=history)))
    write_last_checkpoint(tmp_path, newer)
    return older, newer


@pytest.mark.parametrize('named', [True, False])
def test_a_flipped_bit_anywhere(two, tmp_path, named):
    """The newer file is used as it was, or the older one is; the message is never about code."""
    older, newer = two
    content, rng = newer.read_bytes(), np.random.default_rng(0)
    expected = load_weights_only(str(newer))['state_dict']['weight']
    if not named:
        (tmp_path / 'last_checkpoint').unlink()
    # All of the directory at the end of the archive, and parts of the rest.
    directory = content.index(b'PK\x01\x02')
    rest = rng.choice(directory, 300, replace=False)
    num_older = 0
    for position in [*rest, *range(directory, len(content), 3)]:
        newer.write_bytes(flip(content, position, rng.integers(8)))
        found = find_resumable(tmp_path)
        assert found in (older, str(newer)), position
        num_older += found == older
        try:
            loaded = load_weights_only(str(newer))
        except DamagedCheckpointError as error:
            assert str(newer) in str(error) and 'run code' not in str(error)
            assert found == older, position
        else:
            assert torch.equal(loaded['state_dict']['weight'], expected)
    assert num_older > 100


def test_what_is_passed_over_is_said(two, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(resuming, 'print_log', lambda line, *more: lines.append(line))
    older, newer = two
    newer.write_bytes(newer.read_bytes()[:-40])
    assert find_resumable(tmp_path) == older
    assert lines[0].startswith(f"Passed over '{newer}': the file is damaged")
    assert lines[1:] == [f"Resuming from {older} instead of '{newer}'"]


def test_a_run_goes_back_to_the_checkpoint_before(tmp_path):
    config = write_config(
        write_pictures(tmp_path / 'pictures'),
        tmp_path,
        **{'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.max_keep_ckpts': -1},
    )
    api.train(str(config), work_dir=str(tmp_path / 'run'))
    newer = tmp_path / 'run' / 'epoch_2.pth'
    content = newer.read_bytes()
    # The method of compression of the first file in the directory: zipfile raises
    # NotImplementedError, of which no caller knew.
    newer.write_bytes(flip(content, content.index(b'PK\x01\x02') + 10, 6))
    options = {'train_cfg.max_epochs': 3}
    runner = api.train(str(config), str(tmp_path / 'run'), 'auto', cfg_options=options)
    starts = (tmp_path / 'run' / 'trace0.txt').read_text().split('start ')
    assert [int(start.split()[0]) for start in starts[1:]] == [0, 6]
    assert runner.epoch == 3 and (tmp_path / 'run' / 'epoch_3.pth').exists()


@pytest.mark.parametrize('content', [b'', b'PK', b'<html>not found</html>', b'\x80\x02'])
def test_what_is_no_checkpoint_is_called_so(content, tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(content)
    with (
        checkpoint_loading(),
        pytest.raises(DamagedCheckpointError, match=r'a\.pth was not loaded: the file is damaged'),
    ):
        load_weights_only(str(path))


def test_code_in_old_files_without_checksums_is_called_so(tmp_path):
    path = tmp_path / 'a.pth'
    content = checkpoint(extra=Malicious(tmp_path / 'ran'))
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UntrustedCheckpointError, match='posix.mkdir'):
        load_weights_only(str(path))


def test_errors_that_are_not_about_the_file_stay(tmp_path):
    path = write(tmp_path / 'a.pth')

    def fail(storage, location):
        raise torch.OutOfMemoryError('CUDA out of memory')

    with pytest.raises(torch.OutOfMemoryError):
        load_weights_only(path, fail)


FOREIGN = dict(
    weights=nn.Linear(2, 1).state_dict(),
    tensor=torch.ones(2),
    numbers=[1, 2],
    meta_is_none=dict(meta=None, optimizer={}),
    meta_is_empty=dict(meta={}, optimizer={}),
    iter_is_text=dict(checkpoint(), meta=dict(epoch=1, iter='9')),
    no_message_hub=dict(meta=dict(epoch=1, iter=9), optimizer={}, state_dict={}),
)


@pytest.mark.parametrize('name', FOREIGN)
@pytest.mark.parametrize('named', [True, False])
def test_foreign_files_are_passed_over(name, named, tmp_path):
    expected = write(tmp_path / 'epoch_1.pth')
    torch.save(FOREIGN[name], tmp_path / 'other.pth')
    if named:
        write_last_checkpoint(tmp_path, tmp_path / 'other.pth')
    assert find_resumable(tmp_path) == expected


@pytest.mark.parametrize('name', FOREIGN)
def test_a_foreign_file_that_was_asked_for_is_refused(name, tmp_path):
    torch.save(FOREIGN[name], tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth is not the checkpoint of a run.*load_from='):
        choose_resumed_checkpoint(Config(), str(tmp_path / 'other.pth'))


@pytest.mark.parametrize(
    'encode',
    [
        os.fsencode,
        lambda path: path.encode('latin-1'),
        lambda path: path.encode('utf-8-sig'),
        lambda path: path.encode('utf-16'),
        lambda path: path.encode() + b'\r\n',
    ],
)
def test_the_last_checkpoint_is_named_in_any_encoding(encode, tmp_path):
    folder = tmp_path / 'äé'
    folder.mkdir()
    expected = write(folder / 'a.pth')
    write(folder / 'b.pth', checkpoint(6))
    (folder / 'last_checkpoint').write_bytes(encode(expected))
    assert find_resumable(folder) == expected


def test_the_last_checkpoint_is_named_in_the_encoding_of_the_locale(tmp_path, monkeypatch):
    """The stock hook writes it so; on Windows that is not the encoding of the file system."""
    monkeypatch.setattr(locale, 'getpreferredencoding', lambda _: 'gbk')
    folder = tmp_path / '模型'
    folder.mkdir()
    expected = write(folder / 'a.pth')
    write(folder / 'b.pth', checkpoint(6))
    (folder / 'last_checkpoint').write_bytes(expected.encode('gbk'))
    assert find_resumable(folder) == expected


@pytest.mark.parametrize('content', [b'\xff\xfe\x00', b'\x00a\x00', b'\xe4\xff', 5000 * b'a'])
def test_a_last_checkpoint_that_names_nothing(content, tmp_path):
    expected = write(tmp_path / 'a.pth')
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert find_resumable(tmp_path) == expected


def test_a_path_that_is_not_utf_8_is_written_and_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xe4'))
    folder.mkdir()
    expected = write(folder / 'a.pth')
    write_last_checkpoint(str(folder), expected)
    assert read_last_checkpoint(folder) == expected


@pytest.mark.parametrize('trusted', [True, False])
def test_checkpoints_of_the_older_format_are_resumed(tmp_path, trusted):
    path = str(tmp_path / 'a.pth')
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    choose_resumed_checkpoint(Config(), path, trusted)
    assert find_resumable(tmp_path, trusted) == path


def test_a_named_checkpoint_without_an_optimizer_is_resumed(tmp_path):
    """``CheckpointHook(save_optimizer=False)`` saves no other ones."""
    content = checkpoint(9)
    del content['optimizer']
    path = write(tmp_path / 'a.pth', content)
    assert find_resumable(tmp_path) is None
    write_last_checkpoint(tmp_path, path)
    assert find_resumable(tmp_path) == path


# ---------------------------------------------------------------- trust


@pytest.mark.parametrize('named', [True, False])
def test_code_in_a_checkpoint_to_resume(named, tmp_path):
    """A named one is refused by the run; others are passed over, unless all are trusted."""
    older = write(tmp_path / 'epoch_1.pth', checkpoint(3))
    newer = write(tmp_path / 'epoch_2.pth', checkpoint(6, extra=pickle.PickleBuffer))
    if named:
        write_last_checkpoint(tmp_path, newer)
    if not named:
        assert find_resumable(tmp_path) == older
    assert find_resumable(tmp_path, trusted=True) == newer
    cfg = Config(dict(work_dir=str(tmp_path)))
    if named:
        with pytest.raises(UntrustedCheckpointError, match='epoch_2.pth.*--trust-checkpoint'):
            choose_resumed_checkpoint(cfg, 'auto')
    choose_resumed_checkpoint(cfg, 'auto', trusted=True)
    assert cfg.load_from == newer and cfg.resume


@pytest.mark.parametrize(
    'tool',
    [
        'train.py',
        'test.py',
        'analysis/consistency.py',
        'analysis/draw_replicas.py',
        'analysis/term_gradients.py',
    ],
)
def test_every_tool_that_may_refuse_a_checkpoint_can_trust_it(tool, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [tool, '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPOSITORY / 'tools' / tool), run_name='__main__')
    assert '--trust-checkpoint' in capsys.readouterr().out
