"""What ``pip install .`` installs has its configs and tools where mim looks for them."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mmengine
import pytest

from tests.paths import CONFIGS, REPOSITORY

BUILD_SDIST = 'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])'
# mim wants the whole path of these.
NAMED_LIKE_A_BASE = {
    'configs/coco/faster_rcnn_mobilenetv3l_tv.py',
    'configs/coco/faster_rcnn_r50_tv.py',
    'configs/coco/retinanet_r50_tv.py',
}
# A config that inherits one of the package, which itself inherits one of MMDetection.
# MMEngine resolves `PACKAGE::` for the packages of a list of its own.
INHERIT = """
from mmengine.config import Config, utils
utils.MODULE2PACKAGE.setdefault('lt_mm', 'lt_mm')
cfg = Config.fromfile('inherits.py')
print(cfg.model.roi_head.type, cfg.model.roi_head.rho)
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Path:
    """The content of the wheel that pip makes from the sdist, offline."""
    folder = tmp_path_factory.mktemp('wheel')
    # A copy: a build leaves its own files beside the sources.
    source = shutil.copytree(REPOSITORY, folder / 'source', ignore=_all_but_sources)
    _python('-c', BUILD_SDIST, folder, cwd=source)
    _python(
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-build-isolation',
        '--no-index',
        '--no-cache-dir',
        '--no-compile',
        '--target',
        folder / 'installed',
        *folder.glob('*.tar.gz'),
        cwd=folder,
    )
    return folder / 'installed'


def _all_but_sources(folder: str, names: list[str]) -> set[str]:
    sources = {
        'LICENSE',
        'README.md',
        'configs',
        'lt_mm',
        'model-index.yml',
        'pyproject.toml',
        'tools',
    }
    others = set(names) - sources if Path(folder) == REPOSITORY else set()
    return others | {'__pycache__'}


def _python(*args, cwd: Path, **env: str) -> str:
    run = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        text=True,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_mim_finds_configs_and_tools(installed):
    mim = installed / 'lt_mm' / '.mim'
    assert all((mim / 'tools' / tool).is_file() for tool in ('train.py', 'test.py'))
    metafiles = mmengine.load(mim / 'model-index.yml')['Import']
    configs = [
        model['Config']
        for metafile in metafiles
        for model in mmengine.load(mim / metafile)['Models']
    ]
    assert configs and all((mim / config).is_file() for config in configs)
    # mim searches the whole package for the name of the file. Runs of a study have a tool
    # of their own, which takes paths.
    count = Counter(path.name for path in (installed / 'lt_mm').rglob('*.py'))
    ambiguous = {
        config for config in configs if count[Path(config).name] > 1 and 'studies/' not in config
    }
    assert ambiguous <= NAMED_LIKE_A_BASE


def test_type_checkers_are_told_of_the_hints(installed):
    assert (installed / 'lt_mm' / 'py.typed').is_file()


def test_every_base_is_installed(installed):
    bases = (CONFIGS / '_base_').rglob('*.py')
    missing = [
        base
        for base in bases
        if not (installed / 'lt_mm' / '.mim' / base.relative_to(REPOSITORY)).is_file()
    ]
    assert not missing


def test_a_config_inherits_an_installed_one(installed, tmp_path):
    (tmp_path / 'inherits.py').write_text(
        "_base_ = 'lt_mm::coco/mask_rcnn_r50_lt.py'\nmodel = dict(roi_head=dict(rho=0.5))"
    )
    out = _python('-c', INHERIT, cwd=tmp_path, PYTHONPATH=str(installed))
    assert out.splitlines()[-1] == 'lt_mm.LossTransformHead 0.5'
