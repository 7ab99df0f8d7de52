"""The one module that knows the differences between the dependency families.

The import names ``mmengine``, ``mmcv``, ``mmdet`` and ``mmpretrain`` come from two
families of distributions: the maintained OneDL forks (``onedl-mmdetection`` and so on)
and the original OpenMMLab releases. The two cannot share an environment, because they
install their files into the same directories.

The check reads metadata and imports none of the packages. That takes milliseconds and
reports every problem at once, whereas an import would stop at the first one.
"""

import contextlib
import importlib.metadata
import importlib.util
import re
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from packaging.version import Version

ONEDL = 'onedl'
OPENMMLAB = 'openmmlab'


class Part(NamedTuple):
    """A package that lt_mm needs.

    Attributes:
        name: The import name.
        minimum: The oldest version of the original release that works. The forks
            continue the version numbers, so one minimum serves both families.
        below: The oldest version that mmcv's operators cannot be compiled with; None if
            there is none.
        distributions: For each family the names under which pip may know the package.
        requirement: For each family what to ask pip for.
    """

    name: str
    minimum: str
    distributions: dict[str, tuple[str, ...]]
    requirement: dict[str, str]
    below: str | None = None


def _shared(name: str, minimum: str, below: str | None = None) -> Part:
    """A part that both families take from the same distribution."""
    families = (ONEDL, OPENMMLAB)
    upper = '' if below is None else f',<{below}'
    return Part(
        name,
        minimum,
        dict.fromkeys(families, (name,)),
        dict.fromkeys(families, f'{name}>={minimum}{upper}'),
        below,
    )


PARTS = (
    # torch 2.14's headers are C++20, and no released mmcv passes more than C++17.
    _shared('torch', '2.0', below='2.14'),
    Part(
        'mmengine',
        '0.8.3',
        {ONEDL: ('onedl-mmengine',), OPENMMLAB: ('mmengine', 'mmengine-lite')},
        {ONEDL: 'onedl-mmengine>=0.10.8', OPENMMLAB: 'mmengine>=0.10,<1'},
    ),
    Part(
        'mmcv',
        '2.0.0',
        {ONEDL: ('onedl-mmcv', 'onedl-mmcv-lite'), OPENMMLAB: ('mmcv', 'mmcv-lite', 'mmcv-full')},
        {ONEDL: 'onedl-mmcv>=2.3', OPENMMLAB: 'mmcv>=2.1,<2.2'},
    ),
    Part(
        'mmdet',
        '3.0.0',
        {ONEDL: ('onedl-mmdetection',), OPENMMLAB: ('mmdet',)},
        {ONEDL: 'onedl-mmdetection>=3.5', OPENMMLAB: 'mmdet>=3.3,<4'},
    ),
    Part(
        'mmpretrain',
        '1.0.0',
        {ONEDL: ('onedl-mmpretrain',), OPENMMLAB: ('mmpretrain',)},
        {ONEDL: 'onedl-mmpretrain>=1.3', OPENMMLAB: 'mmpretrain>=1.2,<2'},
    ),
    _shared('pycocotools', '2.0'),
)

# Parts whose distribution tells the family of an environment, the most reliable first.
_TELLING = ('mmdet', 'mmpretrain', 'mmcv', 'mmengine')


def check_dependencies() -> None:
    """Checks that every package that lt_mm needs is installed and recent enough.

    Raises:
        ImportError: If a package is missing, too old, installed twice or incomplete.
            Names all of them, the versions found and needed, and for each the command
            that mends it in the family of this environment.
    """
    family = detect_family()
    problems = [problem for part in PARTS if (problem := _problem_of(part, family))]
    if problems:
        lines = '\n'.join(f'  {problem}' for problem in problems)
        raise ImportError(
            f'lt_mm cannot work with the packages of this environment ({family} family):\n{lines}'
        )


def has_frameworks() -> bool:
    """Whether at least one of the OpenMMLab packages can be found."""
    return any(importlib.util.find_spec(name) is not None for name in _TELLING)


def detect_family() -> str:
    """The dependency family of this environment.

    Returns:
        ``'onedl'`` or ``'openmmlab'``: the family of the installed mmdet, or else of
        mmpretrain, mmcv or mmengine. ``'onedl'`` where none of them is installed, or
        where that package comes from both families.
    """
    parts = {part.name: part for part in PARTS}
    for name in _TELLING:
        for family in (ONEDL, OPENMMLAB):
            if _installed(parts[name].distributions[family]):
                return family
    return ONEDL


def _problem_of(part: Part, family: str) -> str | None:
    """What is wrong with a part and what to do, or None."""
    forks, originals = (_installed(part.distributions[each]) for each in (ONEDL, OPENMMLAB))
    found = {**originals, **forks}
    install = _install_command(part, family)
    # Removing one of two that share a directory takes files of the other with it.
    reinstall = f'pip uninstall -y {" ".join(found) or part.name} && {install}'
    if forks and originals and forks != originals:
        names = ' and '.join(f'{name} {version}' for name, version in found.items())
        return f'{part.name}: installed twice, as {names}, which overwrite each other: {reinstall}'
    if importlib.util.find_spec(part.name) is None:
        return f'{part.name}: not found, needs >= {part.minimum}: {install}'
    version = next(iter(found.values()), None) or _version_in_file(part.name)
    if version is not None and Version(version) < Version(part.minimum):
        return f'{part.name}: found {version}, needs >= {part.minimum}: {install}'
    # Whoever has compiled mmcv with a newer one has mended mmcv.
    is_too_new = version is not None and part.below and Version(version) >= Version(part.below)
    if is_too_new and not _has_operators():
        return (
            f'{part.name}: found {version}, with which mmcv cannot be compiled, needs >= '
            f'{part.minimum} and < {part.below}: {install} torchvision'
        )
    if part.name == 'mmcv' and not _has_operators():
        return (
            f'mmcv: found {version or "a version"} without compiled operators (mmcv._ext), '
            f'which the detectors need: {reinstall}'
        )
    return None


def _install_command(part: Part, family: str) -> str:
    requirement = f"'{part.requirement[family]}'"
    if part.name != 'mmcv':
        return f'pip install {requirement}'
    # In an isolated build the operators would be compiled for another torch.
    return (
        'pip install ninja psutil && MMCV_WITH_OPS=1 '
        f'pip install --no-build-isolation {requirement}'
    )


def _has_operators() -> bool:
    """Whether there are compiled operators of mmcv."""
    # find_spec('mmcv._ext') would import mmcv; looking into its folder does not.
    return PathFinder.find_spec('_ext', _folders_of('mmcv')) is not None


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    """Those of the distributions that are installed, with their versions."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _version_in_file(name: str) -> str | None:
    """The version in ``version.py`` of a checkout on ``PYTHONPATH``, which has no metadata."""
    for folder in _folders_of(name):
        path = Path(folder, 'version.py')
        pattern = r'^__version__\s*=\s*[\'"]([^\'"]+)[\'"]'
        if path.is_file() and (match := re.search(pattern, path.read_text('utf-8'), re.MULTILINE)):
            return match[1]
    return None


def _folders_of(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    return list(spec.submodule_search_locations or []) if spec else []
