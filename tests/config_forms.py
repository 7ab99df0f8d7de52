"""One config in every form in which MMEngine reads configs.

``names`` are types as bare names, ``paths`` as full paths of classes, ``classes`` a pure Python
config with ``read_base``; ``dumped`` is what ``Config.dump`` makes of that one, and ``json`` and
``yaml`` too. All but ``names`` and ``paths`` have no default scope.
"""

import importlib

from mmengine import registry as mmengine_registry
from mmengine.config import Config

FORMS = ('paths', 'classes', 'dumped', 'json', 'yaml')
_REGISTRIES = (
    'HOOKS',
    'MODELS',
    'DATASETS',
    'TRANSFORMS',
    'DATA_SAMPLERS',
    'METRICS',
    'OPTIM_WRAPPERS',
    'OPTIMIZERS',
    'PARAM_SCHEDULERS',
    'VISUALIZERS',
    'VISBACKENDS',
    'LOG_PROCESSORS',
    'TASK_UTILS',
    'LOOPS',
)


def write_form(cfg, form, folder):
    """Writes a config in a form; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = cfg.to_dict() if hasattr(cfg, 'to_dict') else dict(cfg._cfg_dict)
    content.pop('custom_imports', None)
    if form == 'names':
        Config(content).dump(str(folder / 'names.py'))
        return str(folder / 'names.py')
    content = _with_classes(content, cfg.default_scope)
    if form == 'paths':
        Config(_with_paths(content)).dump(str(folder / 'paths.py'))
        return str(folder / 'paths.py')
    content['default_scope'] = None
    path = _write_classes(content, folder)
    if form == 'classes':
        return path
    path, ending = folder / form, 'py' if form == 'dumped' else form
    Config.fromfile(str(folder / 'classes.py')).dump(f'{path}.{ending}')
    return f'{path}.{ending}'


def _with_classes(node, scope):
    if isinstance(node, dict):
        node = {key: _with_classes(value, scope) for key, value in node.items()}
        for key in ('type', 'resize_type'):
            if isinstance(node.get(key), str):
                node[key] = _class_of(node[key], scope)
        return node
    return type(node)(_with_classes(each, scope) for each in node) if _is_list(node) else node


def _class_of(name, scope):
    for each in _REGISTRIES:
        with getattr(mmengine_registry, each).switch_scope_and_registry(scope) as registry:
            found = registry.get(name)
        # Layers of torch, whose names the frameworks compare, stay names in their own configs too.
        if isinstance(found, type) and not found.__module__.startswith(('torch.nn', 'mmcv.cnn')):
            return found
    return name


def _with_paths(node):
    if isinstance(node, dict):
        return {key: _with_paths(value) for key, value in node.items()}
    if _is_list(node):
        return type(node)(_with_paths(each) for each in node)
    return f'{_module_of(node)}.{node.__name__}' if isinstance(node, type) else node


def _module_of(cls):
    """Where people import a class from: MMEngine finds none in a module named as a function."""
    names = cls.__module__.split('.')
    for end in range(1, len(names)):
        module = '.'.join(names[:end])
        if getattr(importlib.import_module(module), cls.__name__, None) is cls:
            return module
    return cls.__module__


def _is_list(node):
    return isinstance(node, (list, tuple))


def _write_classes(content, folder):
    """A pure Python config, of which half lies in a base."""
    names = list(content)
    for file, own in (('base', names[::2]), ('classes', names[1::2])):
        imports: dict[type, str] = {}
        lines = [f'{name} = {_text(content[name], imports)}' for name in own]
        head = ['from mmengine.config import read_base']
        if file == 'classes':
            head += ['with read_base():', '    from .base import *']
        head += [
            f'from {_module_of(cls)} import {cls.__name__} as {name}'
            for cls, name in imports.items()
        ]
        (folder / f'{file}.py').write_text('\n'.join([*head, *lines]) + '\n')
    return str(folder / 'classes.py')


def _text(node, imports):
    if isinstance(node, dict):
        items = (f'{key!r}: {_text(value, imports)}' for key, value in node.items())
        return '{' + ', '.join(items) + '}'
    if _is_list(node):
        inside = ''.join(f'{_text(each, imports)}, ' for each in node)
        return f'[{inside}]' if isinstance(node, list) else f'({inside})'
    if isinstance(node, type):
        return imports.setdefault(node, f'{node.__name__}_{len(imports)}')
    return repr(node)
