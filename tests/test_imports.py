"""Mathematics knows no framework: who may import what, read from the source."""
import ast
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

import lt_mm

PACKAGE = Path(lt_mm.__file__).parent
FRAMEWORKS = {'mmcv', 'mmdet', 'mmengine', 'mmpretrain'}
CORE_MAY_IMPORT = {'torch', 'numpy'} | sys.stdlib_module_names
# The rest of the package reaches the frameworks through these.
MAY_IMPORT_FRAMEWORKS = ('adapters/', 'registry.py', 'compat.py')

FILES = sorted(PACKAGE.rglob('*.py'))
CORE_FILES = [path for path in FILES if path.parent == PACKAGE / 'core']


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
            base = parents[:len(parents) - node.level + 1] if node.level else []
            module = '.'.join(base + ([node.module] if node.module else []))
            # `from lt_mm import adapters` imports a module too.
            yield from (f'{module}.{alias.name}' for alias in node.names)


def _imports_of(path: Path) -> list[str]:
    package = '.'.join(path.parent.relative_to(PACKAGE.parent).parts)
    return list(imported_modules(path.read_text(), package))


def _relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize('path', CORE_FILES, ids=_relative)
def test_core_imports_torch_numpy_the_standard_library_and_core_only(path):
    strangers = [name for name in _imports_of(path)
                 if name.split('.')[0] not in CORE_MAY_IMPORT
                 and not name.startswith('lt_mm.core.')]
    assert strangers == []


@pytest.mark.parametrize('path', FILES, ids=_relative)
def test_frameworks_are_imported_by_the_adapters_only(path):
    if _relative(path).startswith(MAY_IMPORT_FRAMEWORKS):
        return
    assert [name for name in _imports_of(path) if name.split('.')[0] in FRAMEWORKS] == []


@pytest.mark.parametrize('source, expected', [
    ('import torch.nn as nn', ['torch.nn']),
    ('from mmdet.models import X, Y', ['mmdet.models.X', 'mmdet.models.Y']),
    ('def f():\n    import mmcv', ['mmcv']),
    ('from .pairing import pair', ['lt_mm.core.pairing.pair']),
    ('from ..adapters import head', ['lt_mm.adapters.head']),
    ('from .. import adapters', ['lt_mm.adapters']),
    ('from lt_mm import adapters', ['lt_mm.adapters']),
])
def test_the_reader_of_imports(source, expected):
    assert list(imported_modules(source, 'lt_mm.core')) == expected


def test_lt_mm_is_one_import():
    """`custom_imports=dict(imports=['lt_mm'])` does nothing but import it."""
    code = ("import importlib, sys; importlib.import_module('lt_mm'); "
            "sys.exit('lt_mm.adapters' not in sys.modules)")
    finished = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
