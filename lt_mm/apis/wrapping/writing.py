"""The text of a child config, for text configs (``_base_``) and pure Python ones."""

import textwrap
from collections.abc import Sequence
from typing import Any

from lt_mm.apis.wrapping.overrides import Override

_WIDTH = 100


def child_config(base: str, overrides: Sequence[Override], comment: str, cfg: Any) -> str:
    """The text of a config that inherits from another one.

    Args:
        base: The value of ``_base_``.
        overrides: What it changes.
        comment: For its first lines.
        cfg: The base config, as read.
    """
    tree = _Node()
    for each in overrides:
        tree.put(each)
    lines = [f'# {line}' for line in textwrap.wrap(comment, _WIDTH - 2)]
    lines += [f'_base_ = {base!r}']
    for key, node in tree.children.items():
        lines += ['', f'{key} = {node.merged(f"_base_.{key}", cfg.get(key))}']
    return '\n'.join(lines) + '\n'


def pure_python_config(module: str, overrides: Sequence[Override], comment: str) -> str:
    """The text of a pure Python config that inherits from another one.

    Args:
        module: The module of the base, as an import statement names it.
        overrides: What it changes.
        comment: For its first lines.
    """
    imported = {each.kind for each in overrides if each.kind}
    lines = [f'# {line}' for line in textwrap.wrap(comment, _WIDTH - 2)]
    lines += ['from mmengine.config import read_base', '']
    lines += sorted(f'from {_MODULES[kind]} import {_class(kind)}' for kind in imported)
    lines += ['', 'with read_base():', f'    from {module} import *', '']
    for each in overrides:
        first, *rest = each.place
        place = str(first) + ''.join(f'[{key!r}]' for key in rest)
        lines += [f'# {line}' for line in textwrap.wrap(each.reason, _WIDTH - 2)]
        if each.merges:
            lines.append(f"{place}['type'] = {_class(str(each.kind))}")
        else:
            lines.append(f'{place} = {_value(each, place, pure=True)}')
    return '\n'.join(lines) + '\n'


# Where the classes are that overrides name.
_MODULES = {
    'lt_mm.GroupedRepeatAugSampler': 'lt_mm.datasets.samplers',
    'lt_mm.InfiniteGroupedRepeatAugSampler': 'lt_mm.datasets.samplers',
    'lt_mm.InvertiblePipeline': 'lt_mm.datasets.transforms',
    'lt_mm.LossTransformHead': 'lt_mm.models.heads',
    'lt_mm.GroupedClsDataPreprocessor': 'lt_mm.models',
    'lt_mm.RecordingDetDataPreprocessor': 'lt_mm.models',
}


def _class(kind: str) -> str:
    return kind.rpartition('.')[2]


class _Node:
    """The overrides below a key of a config."""

    def __init__(self) -> None:
        self.children: dict[str | int, _Node] = {}
        self.override: Override | None = None

    def put(self, override: Override) -> None:
        node = self
        for key in override.place:
            node = node.children.setdefault(key, _Node())
        node.override = override

    def merged(self, base: str, value: Any) -> str:
        """The text for a place where MMEngine merges dicts, and replaces everything else."""
        if self.override is not None:
            return _value(self.override, base, deletes=value is not None)
        if _is_list(self.children):
            return self._list(base, value)
        return _dict([(key, self._commented(key, base, value)) for key in self.children])

    def _commented(self, key: str | int, base: str, value: Any) -> tuple[str, str]:
        child = self.children[key]
        reason = child.override.reason if child.override else ''
        return reason, child.merged(f'{base}.{key}', (value or {}).get(key))

    def _list(self, base: str, value: Any) -> str:
        """The text of a list, whose members are those of the base where nothing is changed."""
        items = []
        for number in range(len(value)):
            child = self.children.get(number)
            item = f'{base}[{number}]'
            items.append(child.rebuilt(item, value[number]) if child else item)
        return '[\n' + ''.join(textwrap.indent(f'{item},\n', '    ') for item in items) + ']'

    def rebuilt(self, base: str, value: Any) -> str:
        """The text for a place that the base's does not merge into: all of it is written."""
        if self.override is not None:
            return _value(self.override, base)
        if _is_list(self.children):
            return self._list(base, value)
        items = [
            (key, ('', child.rebuilt(f'{base}.{key}', value[key])))
            for key, child in self.children.items()
        ]
        return _dict(items, start=base)


def _is_list(children: dict[str | int, _Node]) -> bool:
    return all(isinstance(key, int) for key in children)


def _value(override: Override, base: str, pure: bool = False, deletes: bool = False) -> str:
    """The text of what an override puts at its place.

    Args:
        override: The override.
        base: What the base has there, as an expression.
        pure: Whether classes are named, not their names.
        deletes: Whether MMEngine would merge it with a dict of the base. What is not merged keeps
            its ``_delete_``.
    """
    if override.kind is None:
        return repr(override.options['value'])
    items: list[tuple[Any, tuple[str, str]]] = []
    if deletes and not (override.merges or override.in_list):
        items.append(('_delete_', ('', 'True')))
    kind = _class(override.kind) if pure else repr(override.kind)
    items.append(('type', ('', kind)))
    if override.wrapped:
        items.append((override.wrapped, ('', base)))
    items += [(key, ('', _literal(value))) for key, value in override.options.items()]
    text = _dict(items)
    return f'[{text}]' if override.in_list else text


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return _dict([(key, ('', _literal(each))) for key, each in value.items()])
    return repr(value)


def _dict(items: Sequence[tuple[Any, tuple[str, str]]], start: str = '') -> str:
    """``dict(...)`` on one line where it is short, else a line for each item."""
    short = ', '.join([start] * bool(start) + [f'{key}={text}' for key, (_, text) in items])
    has_comment = any(reason for _, (reason, _) in items)
    if not has_comment and '\n' not in short and len(short) < _WIDTH - 30:
        return f'dict({short})'
    lines = [f'{start},'] if start else []
    for key, (reason, text) in items:
        lines += [f'# {line}' for line in textwrap.wrap(reason, _WIDTH - 12)]
        lines.append(f'{key}={text},')
    return 'dict(\n' + textwrap.indent('\n'.join(lines), '    ') + '\n)'
