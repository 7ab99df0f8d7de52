import importlib.metadata
import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
from packaging.version import Version

from lt_mm import compat
from tests.paths import REPOSITORY

ONEDL_VERSIONS = {
    'torch': '2.9.1+cpu',
    'pycocotools': '2.0.11',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6',
}
OPENMMLAB_VERSIONS = {
    'torch': '2.9.1',
    'pycocotools': '2.0.11',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmpretrain': '1.2.0',
}


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Returns a function that makes an environment of the named distributions.

    A part can be imported if one of its distributions is installed, or if it is
    among ``unpackaged``: name to the text of its ``version.py``.
    """

    def make(distributions, operators=True, unpackaged=None):
        importable = {
            part.name
            for part in compat.PARTS
            for names in part.distributions.values()
            if any(name in distributions for name in names)
        }
        for name, text in (unpackaged or {}).items():
            importable.add(name)
            (tmp_path / name).mkdir()
            (tmp_path / name / 'version.py').write_text(text)
        if operators:
            (tmp_path / 'mmcv').mkdir(exist_ok=True)
            (tmp_path / 'mmcv' / '_ext.abi3.so').touch()

        def version(name):
            if name not in distributions:
                raise importlib.metadata.PackageNotFoundError(name)
            return distributions[name]

        def find_spec(name):
            if name not in importable:
                return None
            spec = ModuleSpec(name, loader=None, is_package=True)
            spec.submodule_search_locations = [str(tmp_path / name)]
            return spec

        monkeypatch.setattr(importlib.metadata, 'version', version)
        monkeypatch.setattr(importlib.util, 'find_spec', find_spec)

    return make


def _without(versions, *names):
    return {name: version for name, version in versions.items() if name not in names}


def _problems():
    with pytest.raises(ImportError) as caught:
        compat.check_dependencies()
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    'versions, family', [(ONEDL_VERSIONS, 'onedl'), (OPENMMLAB_VERSIONS, 'openmmlab')]
)
def test_a_complete_environment_passes(environment, versions, family):
    environment(versions)
    assert compat.detect_family() == family
    compat.check_dependencies()


def test_this_environment_passes():
    compat.check_dependencies()


@pytest.mark.parametrize(
    'versions, removed, expected',
    [
        (
            ONEDL_VERSIONS,
            'onedl-mmpretrain',
            "mmpretrain: not found, needs >= 1.0.0: pip install 'onedl-mmpretrain>=1.3'",
        ),
        (
            OPENMMLAB_VERSIONS,
            'mmpretrain',
            "mmpretrain: not found, needs >= 1.0.0: pip install 'mmpretrain>=1.2,<2'",
        ),
        (
            ONEDL_VERSIONS,
            'pycocotools',
            "pycocotools: not found, needs >= 2.0: pip install 'pycocotools>=2.0'",
        ),
        # Without mmdet, the family is that of the other parts.
        (
            ONEDL_VERSIONS,
            'onedl-mmdetection',
            "mmdet: not found, needs >= 3.0.0: pip install 'onedl-mmdetection>=3.5'",
        ),
        (
            OPENMMLAB_VERSIONS,
            'mmdet',
            "mmdet: not found, needs >= 3.0.0: pip install 'mmdet>=3.3,<4'",
        ),
        (
            OPENMMLAB_VERSIONS,
            'mmcv',
            'mmcv: not found, needs >= 2.0.0: pip install ninja psutil && MMCV_WITH_OPS=1 '
            "pip install --no-build-isolation 'mmcv>=2.1,<2.2'",
        ),
    ],
)
def test_a_missing_part_names_the_command_of_its_family(environment, versions, removed, expected):
    environment(_without(versions, removed))
    assert _problems() == [expected]


@pytest.mark.parametrize(
    'versions, name, old, expected',
    [
        (
            OPENMMLAB_VERSIONS,
            'mmdet',
            '2.28.0',
            "mmdet: found 2.28.0, needs >= 3.0.0: pip install 'mmdet>=3.3,<4'",
        ),
        (
            OPENMMLAB_VERSIONS,
            'mmdet',
            '3.0.0rc6',
            "mmdet: found 3.0.0rc6, needs >= 3.0.0: pip install 'mmdet>=3.3,<4'",
        ),
        (
            ONEDL_VERSIONS,
            'torch',
            '1.13.1+cpu',
            "torch: found 1.13.1+cpu, needs >= 2.0: pip install 'torch>=2.0,<2.14'",
        ),
    ],
)
def test_an_old_part_tells_found_and_needed(environment, versions, name, old, expected):
    environment({**versions, name: old})
    assert _problems() == [expected]


def test_all_problems_are_in_one_error(environment):
    environment({'torch': '1.13.1', 'mmengine': '0.10.7', 'mmdet': '2.28.0'})
    assert [line.split(':')[0] for line in _problems()] == [
        'torch',
        'mmcv',
        'mmdet',
        'mmpretrain',
        'pycocotools',
    ]


def test_an_empty_environment_is_pointed_to_the_maintained_family(environment):
    environment({})
    assert compat.detect_family() == 'onedl'
    problems = _problems()
    assert len(problems) == len(compat.PARTS)
    assert problems[1].endswith("pip install 'onedl-mmengine>=0.10.8'")


def test_both_families_at_once_are_told_apart(environment):
    environment({**ONEDL_VERSIONS, 'mmdet': '3.3.0'})
    assert _problems() == [
        'mmdet: installed twice, as mmdet 3.3.0 and onedl-mmdetection 3.5.1, which overwrite '
        'each other: pip uninstall -y mmdet onedl-mmdetection && '
        "pip install 'onedl-mmdetection>=3.5'"
    ]


@pytest.mark.parametrize(
    'versions, name, expected',
    [
        (_without(OPENMMLAB_VERSIONS, 'mmcv'), 'mmcv-lite', "'mmcv>=2.1,<2.2'"),
        (_without(ONEDL_VERSIONS, 'onedl-mmcv'), 'onedl-mmcv-lite', "'onedl-mmcv>=2.3'"),
        # The usual name, built without MMCV_WITH_OPS.
        (_without(ONEDL_VERSIONS, 'onedl-mmcv'), 'onedl-mmcv', "'onedl-mmcv>=2.3'"),
    ],
)
def test_mmcv_without_operators(environment, versions, name, expected):
    environment({**versions, name: '2.1.0'}, operators=False)
    assert _problems() == [
        'mmcv: found 2.1.0 without compiled operators (mmcv._ext), which the detectors need: '
        f'pip uninstall -y {name} && pip install ninja psutil && MMCV_WITH_OPS=1 '
        f'pip install --no-build-isolation {expected}'
    ]


TOO_NEW = 'with which mmcv cannot be compiled, needs >= 2.0 and < 2.14: '


@pytest.mark.parametrize('torch', ['2.14.0', '2.14.1+cpu', '3.0'])
def test_a_torch_that_mmcv_cannot_be_compiled_with_is_named(environment, torch):
    environment({**ONEDL_VERSIONS, 'torch': torch})
    compat.check_dependencies()  # somebody has compiled it
    environment({**_without(ONEDL_VERSIONS, 'onedl-mmcv'), 'torch': torch}, operators=False)
    found, missing = _problems()
    assert found == f"torch: found {torch}, {TOO_NEW}pip install 'torch>=2.0,<2.14' torchvision"
    assert missing.startswith('mmcv: not found')


def test_the_range_of_torch_is_the_same_everywhere():
    (torch,) = (part for part in compat.PARTS if part.name == 'torch')
    minor = int(torch.below.split('.')[1])
    readme = (REPOSITORY / 'README.md').read_text('utf-8')
    assert f'{torch.minimum} to 2.{minor - 1}' in readme and f'2.{minor}' in readme
    packaged = (REPOSITORY / 'pyproject.toml').read_text('utf-8')
    assert f'"{torch.requirement["onedl"]}"' in packaged
    for name in ('onedl', 'openmmlab'):
        pins = (REPOSITORY / 'tools' / 'requirements' / f'{name}.txt').read_text('utf-8')
        pinned = next(line[7:] for line in pins.splitlines() if line.startswith('torch=='))
        assert Version(torch.minimum) <= Version(pinned) < Version(torch.below)


def test_a_checkout_without_metadata_is_read(environment):
    installed = _without(OPENMMLAB_VERSIONS, 'mmdet')
    environment(installed, unpackaged={'mmdet': "__version__ = '2.25.0'\n"})
    assert _problems()[0].startswith('mmdet: found 2.25.0, needs >= 3.0.0')


def test_a_checkout_that_hides_its_version_is_accepted(environment):
    installed = _without(OPENMMLAB_VERSIONS, 'mmdet')
    environment(installed, unpackaged={'mmdet': '__version__ = compute()\n'})
    compat.check_dependencies()


@pytest.mark.parametrize(
    'name, version, is_enough',
    [
        ('mmdet', '3.0.0rc6', False),
        ('mmdet', '2.9.1', False),
        ('mmdet', '3.0.0.dev0', False),
        ('mmdet', '3.0', True),
        ('mmdet', 'v3.0.0', True),
        ('mmdet', '3.0.0.post1', True),
        ('mmdet', '10.0.0a1', True),
        ('mmengine', '0.9', True),
        ('mmengine', '0.10.7', True),
        ('mmengine', '0.8.2', False),
        ('torch', '2.0.0+cpu', True),
        ('torch', '2.9.1+git0abc', True),
        ('torch', '2.0.0b1', False),
    ],
)
def test_versions_are_ordered_as_releases(environment, name, version, is_enough):
    environment({**OPENMMLAB_VERSIONS, name: version})
    if is_enough:
        compat.check_dependencies()
    else:
        assert [problem.split(',')[0] for problem in _problems()] == [f'{name}: found {version}']


def test_what_is_no_version_is_refused(environment):
    environment({**OPENMMLAB_VERSIONS, 'mmdet': 'unknown'})
    with pytest.raises(ValueError, match="'unknown'"):
        compat.check_dependencies()


def test_the_check_imports_none_of_the_packages():
    """In a process of its own, where nothing has imported them before.

    The module is loaded from its file, because importing it as lt_mm.compat would
    import lt_mm, which registers its classes and so imports the frameworks.
    """
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location('compat', {compat.__file__!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
compat.check_dependencies()
names = {[part.name for part in compat.PARTS]!r}
print([name for name in names if name in sys.modules])
"""
    finished = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert finished.stdout.strip() == '[]', finished.stderr
