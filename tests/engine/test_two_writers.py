"""Two processes in one folder, and processes that left partial files."""

import errno
import multiprocessing
import os
import re

import pytest

from lt_mm.apis import train as api
from lt_mm.engine.checkpoints import AtomicBackend, lock_folder, locking, unlock_folder
from lt_mm.engine.hooks import AtomicCheckpointHook
from tests.engine.interrupted_runs import write_config
from tests.engine.test_checkpoints import FakeRunner
from tests.training_data import write_pictures


def hold(folder, connection):
    lock_folder(folder)
    connection.send('locked')
    connection.recv()  # waits until it is killed


@pytest.fixture
def other(tmp_path):
    """Another process that trains in a folder, as far as the lock can tell."""
    context = multiprocessing.get_context('forkserver')
    mine, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path / 'run', theirs))
    process.start()
    assert mine.poll(120) and mine.recv() == 'locked'
    yield process
    process.kill()
    process.join()


def test_writers_of_one_file_do_not_mix_their_bytes(tmp_path, monkeypatch):
    """The second one writes the whole file while the first one has not finished."""
    backend, path = AtomicBackend(), tmp_path / 'epoch_1.pth'
    sync, started = os.fsync, []

    def write_in_between(descriptor):
        sync(descriptor)
        if not started:
            started.append(True)
            backend.put(b'other', path)
            assert path.read_bytes() == b'other'

    monkeypatch.setattr(os, 'fsync', write_in_between)
    backend.put(b'the first one', path)
    assert path.read_bytes() == b'the first one'
    assert os.listdir(tmp_path) == ['epoch_1.pth']


def held_below(folder):
    """Locks that this process holds there."""
    return [path for path in locking._HELD if folder.resolve() in path.parents]


def test_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    AtomicBackend().put(b'before', tmp_path / 'epoch_1.pth')
    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left on device.*epoch_1.pth'):
        AtomicBackend().put(b'after', tmp_path / 'epoch_1.pth')
    assert os.listdir(tmp_path) == ['epoch_1.pth']
    assert (tmp_path / 'epoch_1.pth').read_bytes() == b'before'


def test_a_second_training_in_a_folder_names_the_first(other, tmp_path):
    pictures = write_pictures(tmp_path / 'pictures')
    config = write_config(pictures, tmp_path, **{'train_cfg.max_epochs': 1})
    partial = tmp_path / 'run' / 'epoch_1.pth.1234abcd.partial'
    partial.write_bytes(b'the other process is writing this')
    message = rf'{tmp_path}/run is in use by process {other.pid} on .*--work-dir'
    with pytest.raises(RuntimeError, match=message):
        api.train(str(config), work_dir=str(tmp_path / 'run'))
    assert not list((tmp_path / 'run').glob('*.pth')) and partial.exists()
    # The lock ends with its process, and what that process has left is removed.
    other.kill()
    other.join()
    api.train(str(config), work_dir=str(tmp_path / 'run'))
    assert (tmp_path / 'run' / 'epoch_1.pth').exists() and not partial.exists()
    # A training that has ended, in a process that goes on, holds nothing.
    assert not held_below(tmp_path)


def test_a_training_that_failed_gives_its_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(api, '_check', lambda runner, loader: None)  # it would stop before
    pictures = write_pictures(tmp_path / 'pictures')
    config = write_config(pictures, tmp_path, **{'train_cfg.max_epochs': 1})
    for path in pictures.glob('*/*'):
        path.write_bytes(b'not a picture')
    with pytest.raises(Exception):  # noqa: B017 (whatever the data set says)
        api.train(str(config), work_dir=str(tmp_path / 'run'))
    assert (tmp_path / 'run' / '.training.lock').exists() and not held_below(tmp_path)


def test_partial_files_of_killed_processes_are_removed(tmp_path):
    names = ['epoch_1.pth.partial', 'best.pth.0a1b2c3d.partial', 'last_checkpoint.12.partial']
    names.append('iter_9_00ff00ff.memory.0a1b2c3d.partial')
    for name in [*names, 'notes.partial', 'epoch_1.pth']:
        (tmp_path / name).write_bytes(b'')
    hook = AtomicCheckpointHook(interval=1)
    hook.before_train(FakeRunner(tmp_path))
    hook.unlock()
    assert sorted(os.listdir(tmp_path)) == ['.training.lock', 'epoch_1.pth', 'notes.partial']


def test_a_file_system_without_locks_is_named_in_a_warning(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(locking, 'print_log', lambda line, *more: lines.append(line))
    monkeypatch.setattr(locking, 'fcntl', None)
    lock_folder(tmp_path)
    unlock_folder(tmp_path)
    assert len(lines) == 1 and re.search('not locked.*no file locks', lines[0])
