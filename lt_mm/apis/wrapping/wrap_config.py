"""Writes the child config of a stock config, and checks it."""

import os
import os.path as osp
import re
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config

from lt_mm.apis.check_config import check_config
from lt_mm.apis.wrapping.overrides import Override, WrapOptions, overrides_of
from lt_mm.apis.wrapping.writing import child_config, pure_python_config
from lt_mm.engine.checks import Report


@dataclass
class WrittenConfig:
    """A config that was written.

    Attributes:
        path: Where it is.
        overrides: What it changes, and why.
        report: What the check of it found.
    """

    path: Path
    overrides: list[Override] = field(default_factory=list)
    report: Report = field(default_factory=Report)

    def __str__(self) -> str:
        changes = '\n'.join(
            f'{".".join(str(key) for key in each.place)}: {each.reason}' for each in self.overrides
        )
        return f'{self.path}\n\n{changes}\n\n{self.report}'


def wrap_config(
    config: str, out: str | None = None, options: WrapOptions | None = None
) -> WrittenConfig:
    """Writes the config that makes a LossTransform run of a stock config.

    Args:
        config: Path of the stock config, or ``mmdet::<path>`` for one of an installed package.
        out: Path of the file; by default ``<name>_lt.py`` in the present folder.
        options: How it is wrapped.

    Raises:
        FileExistsError: If the file is there already.
        UnsupportedHeadError: If the model has no head to wrap.
        ValueError: If the config is wrapped already, or does not train; if MMEngine finds no
            config of that name in an installed package; if a pure Python config is not below the
            folder of an installed package, and on another drive.
    """
    cfg = _config_of_package(config) if '::' in config else Config.fromfile(config)
    name = osp.splitext(osp.basename(config))[0]
    path = Path(out or f'{name}_lt.py')
    if path.exists():
        raise FileExistsError(f'{path} exists; expected --out with the path of a new file')
    overrides = overrides_of(cfg, options or WrapOptions())
    comment = f'{name} with LossTransform.'
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_pure_python(cfg):
        text = pure_python_config(_module_of(str(cfg.filename), path), overrides, comment)
    else:
        base = config if '::' in config else osp.relpath(config, path.parent)
        text = child_config(base.replace(os.sep, '/'), overrides, comment, cfg)
    path.write_text(text, encoding='utf-8')
    return WrittenConfig(path, overrides, check_config(str(path)))


def _config_of_package(name: str) -> Config:
    # MMEngine looks for `word::word/`, which leaves out folders such as gn+ws and legacy_1.x.
    if re.match(r'\w+::\w+/', name) is None:
        package = name.partition('::')[0]
        raise ValueError(
            f'{name} cannot be the base of a config: MMEngine finds configs of a package below '
            'folders whose names have letters, digits and _ alone; expected such a name, '
            'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py for one, or the path of the file, '
            f"which is below .mim/configs in the folder of the package: python -c 'import {package}"
            f"; print({package}.__file__)'"
        )
    return get_config(name)


def _is_pure_python(cfg: Config) -> bool:
    return bool(cfg.filename) and Config._is_lazy_import(cfg.filename)


def _module_of(filename: str, child: Path) -> str:
    """A pure Python config, as a relative import from the child names it."""
    relative = Path(osp.relpath(filename, child.parent)).with_suffix('')
    ups = sum(part == '..' for part in relative.parts)
    return '.' * (ups + 1) + '.'.join(part for part in relative.parts if part != '..')
