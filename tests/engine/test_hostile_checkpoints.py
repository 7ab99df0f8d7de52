"""No checkpoint runs code, whatever it calls, wherever it hides it, whoever loads it."""

import builtins
import functools
import importlib
import os
import pickle
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from lt_mm.engine.checkpoints import (
    UntrustedCheckpointError,
    checkpoint_loading,
    find_resumable,
    load_weights_only,
)
from lt_mm.engine.checkpoints.refusals import DamagedCheckpointError
from lt_mm.engine.checkpoints.resuming import check_resumable
from tests.engine.test_checkpoints import checkpoint


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Built:
    """Unpickling it makes an object of a class and sets its state by a call."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return types.SimpleNamespace, (), Call(os.mkdir, self.path)


def calls(path):
    """Ways to make a folder when a pickle is loaded."""
    folder, code = str(path), f'__import__("os").mkdir({str(path)!r})'
    inner = pickle.dumps(Call(os.mkdir, folder))
    return {
        'mkdir': Call(os.mkdir, folder),
        'makedirs': Call(os.makedirs, folder),
        'system': Call(os.system, f'mkdir {folder}'),
        'popen': Call(os.popen, f'mkdir {folder}'),
        'subprocess': Call(subprocess.call, ['mkdir', folder]),
        'Popen': Call(subprocess.Popen, ['mkdir', folder]),
        'eval': Call(eval, code),
        'exec': Call(exec, code),
        'compiled': Call(exec, Call(compile, code, 'a', 'exec')),
        'partial': Call(map, functools.partial(os.mkdir), [folder]),
        'list of a map': Call(list, Call(map, os.mkdir, [folder])),
        'getattr': Call(eval, f'getattr(__import__("os"), "mkdir")({folder!r})'),
        'import': Call(importlib.import_module, 'this'),
        '__import__': Call(builtins.__import__, 'antigravity'),
        'pickle in a pickle': Call(pickle.loads, inner),
        'torch.load': Call(torch.load, folder),
        'open': Call(open, folder, 'w'),
        'exit': Call(sys.exit, 3),
        'touch': Call(Path.mkdir, Path(folder)),
        'state': Built(path),
    }


def places(thing):
    """Checkpoints that hold a thing somewhere."""
    weights = nn.Linear(2, 1).state_dict()
    return {
        'top': thing,
        'beside': checkpoint(extra=thing),
        'meta': checkpoint() | dict(meta=dict(epoch=1, iter=1, config=thing)),
        'weights': checkpoint() | dict(state_dict={**weights, 'more': thing}),
        'optimizer': checkpoint() | dict(optimizer=[{'a': (1, [thing])}]),
        'hub': checkpoint() | dict(message_hub=dict(runtime_info=dict(cfg=thing))),
    }


FORMS = {
    'zip': lambda content, path: torch.save(content, path),
    'legacy': lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
    'protocol 0': lambda content, path: path.write_bytes(pickle.dumps(content, protocol=0)),
    'protocol 5': lambda content, path: path.write_bytes(pickle.dumps(content, protocol=5)),
}


# A pickle that torch does not write is no checkpoint.
_REFUSALS = UntrustedCheckpointError, DamagedCheckpointError, pickle.UnpicklingError


def resumed(path):
    path.with_name('last_checkpoint').write_text(str(path))
    return find_resumable(path.parent)


LOADERS = {
    'weights of a model': lambda path: load_checkpoint(nn.Linear(2, 1), str(path)),
    'pretrained part': lambda path: CheckpointLoader.load_checkpoint(str(path), 'cpu'),
    'torch.load': lambda path: torch.load(path, weights_only=False),
    'memory': lambda path: load_weights_only(str(path), 'cpu'),
    'named for resuming': lambda path: check_resumable(str(path)),
    'found for resuming': resumed,
}


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('loader', LOADERS)
def test_nothing_runs(loader, tmp_path, monkeypatch):
    """Each is refused; of the search for something to resume from, nothing is found."""
    monkeypatch.delitem(sys.modules, 'this', raising=False)
    ran, load, outcomes = tmp_path / 'ran', LOADERS[loader], Counter()
    for place in places(None):
        for form, save in FORMS.items():
            for name, thing in calls(ran).items():
                path = tmp_path / 'epoch_1.pth'
                save(places(thing)[place], path)
                try:
                    with checkpoint_loading():
                        found = load(path)
                except _REFUSALS as error:
                    outcomes[type(error).__name__] += 1
                else:
                    assert found is None, (place, form, name)
                    outcomes['left out'] += 1
                assert not ran.exists() and 'this' not in sys.modules, (place, form, name)
    assert sum(outcomes.values()) == 6 * 4 * 20
