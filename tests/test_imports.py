"""Who may import what, read from the source: imports go down from room to room."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lt_mm
from lt_mm.engine.checkpoints import read_last_checkpoint, write_last_checkpoint

PACKAGE = Path(lt_mm.__file__).parent
FRAMEWORKS = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain'}
CORE_MAY_IMPORT = {'torch', 'numpy'} | sys.stdlib_module_names
# A room may import those on lower floors, and itself.
FLOORS = {
    'compat': 0,
    'registry': 0,
    'core': 1,
    'structures': 2,
    'datasets': 3,
    'models': 3,
    'evaluation': 4,
    'visualization': 4,
    'engine': 5,
    'apis': 6,
}

FILES = sorted(path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py')
CORE_FILES = [path for path in FILES if PACKAGE / 'core' in path.parents]


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Full names of all that a module imports, inside functions too.

    Args:
        source: Text of the module.
        package: Name of the package that it lies in, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split('.')
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = '.'.join(base + ([node.module] if node.module else []))
            # `from lt_mm import models` imports a module too.
            yield from (f'{module}.{alias.name}' for alias in node.names)


def _imports_of(path: Path) -> list[str]:
    package = '.'.join(path.parent.relative_to(PACKAGE.parent).parts)
    return list(imported_modules(path.read_text(), package))


def _relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', CORE_FILES, ids=_relative)
def test_core_imports_torch_numpy_the_standard_library_and_core_only(path):
    strangers = [
        name
        for name in _imports_of(path)
        if name.split('.')[0] not in CORE_MAY_IMPORT and not name.startswith('lt_mm.core.')
    ]
    assert strangers == []


@pytest.mark.parametrize('path', FILES, ids=_relative)
def test_imports_go_down(path):
    own = _room_of(path)
    others = {
        name: name.split('.')[1]
        for name in _imports_of(path)
        if name.startswith('lt_mm.') and name.split('.')[1] != own
    }
    upwards = [name for name, room in others.items() if FLOORS[room] >= FLOORS[own]]
    assert upwards == []


@pytest.mark.parametrize(
    'source, expected',
    [
        ('import torch.nn as nn', ['torch.nn']),
        ('from mmdet.models import X, Y', ['mmdet.models.X', 'mmdet.models.Y']),
        ('def f():\n    import mmcv', ['mmcv']),
        ('from .pairing import pair', ['lt_mm.core.pairing.pair']),
        ('from ..models import heads', ['lt_mm.models.heads']),
        ('from .. import models', ['lt_mm.models']),
        ('from lt_mm import models', ['lt_mm.models']),
    ],
)
def test_the_reader_of_imports(source, expected):
    assert list(imported_modules(source, 'lt_mm.core')) == expected


def _run(code: str, *arguments: str, **environment: str) -> None:
    command, env = [sys.executable, '-c', code, *arguments], {**os.environ, **environment}
    finished = subprocess.run(command, capture_output=True, text=True, env=env)
    assert finished.returncode == 0, finished.stderr


# Stands in for an environment without the frameworks: none of them is found.
_ABSENT = f"""
import sys
from importlib.machinery import PathFinder

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split('.')[0] in {sorted(FRAMEWORKS)}:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Absent if each is PathFinder else each for each in sys.meta_path]
"""


def _modules(paths: list[Path]) -> list[str]:
    return [
        f'lt_mm.{_relative(path)[:-3].replace("/", ".").removesuffix(".__init__")}'
        for path in paths
    ]


def test_core_can_be_imported_without_the_frameworks():
    modules = _modules(CORE_FILES)
    _run(f'{_ABSENT}\nimport {", ".join(modules)}\nassert not {FRAMEWORKS!r} & sys.modules.keys()')


# Stands in for Windows as lt_mm sees it; the packages that it needs are there already.
_WITHOUT_POSIX = """
import importlib, os, signal, sys
from types import SimpleNamespace
import mmcv.ops, mmdet.apis, mmpretrain.apis, torch.multiprocessing, matplotlib.pyplot, pandas

hidden = {
    os: ['setsid', 'fork', 'getuid', 'killpg', 'getpgid', 'sched_getaffinity', 'O_DIRECTORY'],
    signal: ['SIGUSR1', 'SIGUSR2', 'SIGALRM', 'SIGKILL', 'SIGHUP', 'setitimer', 'ITIMER_REAL',
             'sigwaitinfo', 'pthread_sigmask'],
}
for module, names in hidden.items():
    for name in names:
        delattr(module, name)
for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):
    sys.modules[name] = None
"""
# `custom_imports=dict(imports=['lt_mm'])` does nothing but import it.
_ONE_IMPORT = """
importlib.import_module('lt_mm')
assert 'lt_mm.models.heads.loss_transform_head' in sys.modules
"""
_EXERCISED = """
from lt_mm.apis.zoo.coverage import _time_limit
from lt_mm.engine.checkpoints import read_last_checkpoint, write_last_checkpoint
from lt_mm.engine.checkpoints.locking import lock_folder
from lt_mm.engine.hooks.preemption_hook import SIGNALS, PreemptionHook

loop = SimpleNamespace(dataloader=SimpleNamespace(worker_init_fn=None))
hook = PreemptionHook()
hook.before_train(SimpleNamespace(train_loop=loop, val_loop=None))
assert SIGNALS == (signal.SIGTERM,) and signal.getsignal(signal.SIGTERM) == hook._receive
loop.dataloader.worker_init_fn(0)
hook.restore()
with _time_limit(1.0):
    pass
folder, other = sys.argv[1:]
lock_folder(folder)
assert sys.getfilesystemencoding() != 'utf-8'
assert read_last_checkpoint(other) == other + '/a.pth'
write_last_checkpoint(folder, folder + '/a.pth')
"""


def test_every_module_can_do_without_what_windows_lacks(tmp_path):
    """In one process, because it has to import the frameworks anew.

    There, too, ``lt_mm`` is one import, and names of folders are the same bytes in a locale that
    has ASCII alone.
    """
    folders = [tmp_path / 'läuft', tmp_path / '模型']
    for folder in folders:
        folder.mkdir()
        (folder / 'a.pth').touch()
    write_last_checkpoint(str(folders[1]), folders[1] / 'a.pth')
    code = f'{_WITHOUT_POSIX}{_ONE_IMPORT}import {", ".join(_modules(FILES))}\n{_EXERCISED}'
    _run(code, *map(str, folders), LC_ALL='C', PYTHONUTF8='0', PYTHONPATH=str(PACKAGE.parent))
    assert read_last_checkpoint(folders[0]) == str(folders[0] / 'a.pth')


def test_files_and_folders_can_be_read_at_a_glance():
    lengths = {_relative(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    sizes = {folder: len(list(folder.glob('*.py'))) for folder in {path.parent for path in FILES}}
    assert {folder: size for folder, size in sizes.items() if size > 12} == {}
