"""Whether a child config wraps the pipeline that its base trains with."""

import ast
import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config

from lt_mm.engine.checks.report import NOTE, WRONG, Report

_PLACE = 'train_dataloader.dataset'


def check_inherited_pipelines(cfg: Config, report: Report) -> None:
    """Finds a variable of the base that is not what the data set of the base uses.

    Many configs have a variable ``train_pipeline`` and another one in the data set.
    ``transforms=_base_.train_pipeline`` then drops augmentations without a word. A variable with
    another name, such as ``train_pipeline_stage2``, may be meant, and is noted.

    Args:
        cfg: The config, as read from its file; one that was dumped has no base.
        report: Gets the findings.
    """
    _compare(cfg, dict(_wrapped_pipelines(cfg)), report)


def _compare(cfg: Config, wrapped: dict[str, Any], report: Report) -> None:
    """Compares the lists that a run records, by their place, with those of a config's bases.

    Where a base records a list itself, another one of the child is meant. The same one may be
    wrong there already, so that the bases of this base are looked at.
    """
    for path in _base_files(cfg.filename):
        base = _read(path, str(cfg.filename))
        recorded, inherited = dict(_wrapped_pipelines(base)), {}
        for place, stock in _pipelines(_dataset_of(base), _PLACE):
            own = wrapped.get(place, wrapped.get(place.replace(_PLACE, f'{_PLACE}.labelled')))
            if own is None or own == stock:
                continue
            if place not in recorded:
                _report_variables(base, path, place, own, stock, report)
            elif recorded[place] == own:
                inherited[place] = own
        if inherited:
            _compare(base, inherited, report)


def _report_variables(
    base: Config, path: str, place: str, own: Any, stock: Any, report: Report
) -> None:
    for name, value in base.items():
        if isinstance(value, list) and _without_scope(value) == own:
            text = (
                f'transforms=_base_.{name} is not what {path} trains with: {_names(own)} instead '
                f'of {_names(stock)}'
            )
            level = WRONG if name == 'train_pipeline' else NOTE
            report.add(level, 'pipeline', text, f'transforms=_base_.{place}')


def _wrapped_pipelines(cfg: Config) -> Iterator[tuple[str, Any]]:
    """The stock lists in the wrapped pipelines of a config, with where they are."""
    for place, pipeline in _pipelines(_dataset_of(cfg), _PLACE):
        own = _wrapped_list(pipeline)
        if own is not None:
            yield place, own


def _base_files(filename: str | None) -> list[str]:
    """The values of ``_base_`` in a config file."""
    if not filename or not filename.endswith('.py') or not osp.isfile(filename):
        return []
    with open(filename, encoding='utf-8') as file:
        tree = ast.parse(file.read())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_':
            try:
                value = ast.literal_eval(node.value)
            except ValueError:  # computed
                return []
            return [value] if isinstance(value, str) else list(value)
    return []


def _read(path: str, child: str) -> Config:
    if '::' in path:
        return get_config(path)
    return Config.fromfile(osp.join(osp.dirname(child), path))


def _dataset_of(cfg: Config) -> Any:
    return (cfg.get('train_dataloader') or {}).get('dataset') or {}


def _pipelines(dataset: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The pipelines of a data set's config, with where they are."""
    if not isinstance(dataset, dict):
        return
    if isinstance(dataset.get('pipeline'), list):
        yield f'{place}.pipeline', _without_scope(dataset['pipeline'])
    for key in ('dataset', 'labelled', 'unlabelled'):
        yield from _pipelines(dataset.get(key), f'{place}.{key}')
    for number, part in enumerate(dataset.get('datasets') or ()):
        yield from _pipelines(part, f'{place}.datasets[{number}]')


def _without_scope(node: Any) -> Any:
    """A part of a config, without the scopes that MMEngine writes into bases of packages."""
    if isinstance(node, dict):
        return {key: _without_scope(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return [_without_scope(each) for each in node]
    return node


def _wrapped_list(pipeline: Any) -> Any:
    """The stock list in a wrapped pipeline; None if the whole is not wrapped."""
    if not pipeline or len(pipeline) != 1 or not isinstance(pipeline[0], dict):
        return None
    return pipeline[0].get('transforms')


def _names(pipeline: Any) -> str:
    kinds = [each.get('type') for each in pipeline if isinstance(each, dict)]
    return ', '.join(getattr(kind, '__name__', str(kind)) for kind in kinds)
