"""The one module that knows the differences between the dependency families.

The import names ``mmengine``, ``mmcv``, ``mmdet`` and ``mmpretrain`` come from
two families of distributions: the maintained OneDL forks (``onedl-mmdetection``
and so on) and the original OpenMMLab releases. The two cannot share an
environment, because they write to the same directories.

Everything here reads metadata and imports none of the packages: the check costs
milliseconds and reports all that is wrong at once, where an import would stop at
the first problem.
"""

import contextlib
import importlib.metadata
import importlib.util
import re
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

ONEDL = 'onedl'
OPENMMLAB = 'openmmlab'


class Part(NamedTuple):
    """A package that lt_mm needs.

    Attributes:
        name: The import name.
        minimum: The oldest version of the original release that works. The
            forks carry the versions on, so one number serves both families.
        distributions: Family to the names under which pip may know the package.
            The first name is the one to install.
        requirement: Family to what to ask pip for.
    """

    name: str
    minimum: str
    distributions: dict[str, tuple[str, ...]]
    requirement: dict[str, str]


def _either(name: str, minimum: str) -> Part:
    """A part that both families take from the same distribution."""
    requirement = f'{name}>={minimum}'
    return Part(
        name,
        minimum,
        {ONEDL: (name,), OPENMMLAB: (name,)},
        {ONEDL: requirement, OPENMMLAB: requirement},
    )


PARTS = (
    _either('torch', '2.0'),
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
    _either('pycocotools', '2.0'),
)

# Parts whose distribution tells which family an environment has, surest first.
_TELLING = ('mmdet', 'mmpretrain', 'mmcv', 'mmengine')


def check_dependencies() -> None:
    """Checks that every package that lt_mm needs is there and recent enough.

    Raises:
        ImportError: Names every missing, too old, doubly installed or incomplete
            package, the version found and the version needed, and the command
            that puts it right in the family of this environment.
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
        ``'onedl'`` or ``'openmmlab'``: the family that mmdet comes from; without
        mmdet, the family of mmpretrain, mmcv or mmengine; the OneDL forks where
        none of them is installed, or where mmdet comes from both.
    """
    parts = {part.name: part for part in PARTS}
    for name in _TELLING:
        for family in (ONEDL, OPENMMLAB):
            if _installed(parts[name].distributions[family]):
                return family
    return ONEDL


def release_key(version: str) -> tuple[tuple[int, ...], bool]:
    """What orders version numbers, without the package ``packaging``.

    ``packaging`` is a dependency of mmengine, whose absence is to be reported,
    and ``mmengine.utils.digit_version`` is out of reach for the same reason.

    Args:
        version: For example ``'0.24.1+cpu'``, ``'3.0.0rc6'``, ``'2.1.0.post1'``.

    Returns:
        The numbers of the release without trailing zeros (``2.0`` equals
        ``2.0.0``), and whether it is final: a candidate or a development version
        sorts before its release. A local part (``+cpu``) does not count.

    Raises:
        ValueError: If ``version`` does not begin with a number.
    """
    match = re.match(r'v?(\d+(?:\.\d+)*)', version.strip())
    if match is None:
        raise ValueError(f'version {version!r} does not begin with a number')
    numbers = [int(number) for number in match.group(1).split('.')]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    suffix = version.strip()[match.end() :].split('+')[0].lower()
    is_final = re.search(r'a|b|c|dev|pre', suffix) is None
    return tuple(numbers), is_final


def _problem_of(part: Part, family: str) -> str | None:
    """What is wrong with a part and what to do, or None."""
    if part.distributions[ONEDL] != part.distributions[OPENMMLAB]:
        originals = _installed(part.distributions[OPENMMLAB])
        forks = _installed(part.distributions[ONEDL])
        if originals and forks:
            return _doubly_installed(part, {**originals, **forks}, family)
    if importlib.util.find_spec(part.name) is None:
        return f'{part.name}: not found, needs >= {part.minimum}: {_install_command(part, family)}'
    version = _version_of(part)
    if version is not None and release_key(version) < release_key(part.minimum):
        return (
            f'{part.name}: found {version}, needs >= {part.minimum}: '
            f'{_install_command(part, family)}'
        )
    if part.name == 'mmcv' and not _has_operators():
        return _without_operators(part, version, family)
    return None


def _install_command(part: Part, family: str) -> str:
    command = f"pip install '{part.requirement[family]}'"
    if part.name == 'mmcv':
        # Isolated, the build would compile the operators against another torch.
        command = (
            'pip install ninja psutil && MMCV_WITH_OPS=1 '
            f"pip install --no-build-isolation '{part.requirement[family]}'"
        )
    return command


def _doubly_installed(part: Part, found: dict[str, str], family: str) -> str:
    """The message for two distributions that wrote to one directory.

    Removing one takes files of the other with it, so both go.
    """
    names = ' and '.join(f'{name} {version}' for name, version in found.items())
    return (
        f'{part.name}: installed twice, as {names}, which overwrite each other: '
        f'pip uninstall -y {" ".join(found)} && {_install_command(part, family)}'
    )


def _without_operators(part: Part, version: str | None, family: str) -> str:
    names = list(_installed(part.distributions[ONEDL] + part.distributions[OPENMMLAB]))
    return (
        f'mmcv: found {version or "a version"} without compiled operators (mmcv._ext), '
        'which the detectors need: '
        f'pip uninstall -y {" ".join(names) or part.name} && '
        f'{_install_command(part, family)}'
    )


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    """Those of the distributions that are installed, with their versions."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _version_of(part: Part) -> str | None:
    """The version of a part that can be imported, or None if nothing tells it.

    A checkout on ``PYTHONPATH`` has no metadata; its ``version.py`` is read then.
    """
    found = _installed(part.distributions[ONEDL] + part.distributions[OPENMMLAB])
    if found:
        return next(iter(found.values()))
    for folder in _folders_of(part.name):
        path = Path(folder, 'version.py')
        if path.is_file():
            match = re.search(
                r'^__version__\s*=\s*[\'"]([^\'"]+)[\'"]', path.read_text(), re.MULTILINE
            )
            if match:
                return match.group(1)
    return None


def _folders_of(name: str) -> list[str]:
    spec = importlib.util.find_spec(name)
    return list(spec.submodule_search_locations or []) if spec else []


def _has_operators() -> bool:
    """Whether mmcv's extension module exists.

    ``find_spec('mmcv._ext')`` would import mmcv; looking into its folder does not.
    """
    return PathFinder.find_spec('_ext', _folders_of('mmcv')) is not None
