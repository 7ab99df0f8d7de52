"""The configs of the installed frameworks, and what of them is wrapped."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from lt_mm.apis.wrapping import head_place
from lt_mm.registry import name_of

LIBRARIES = ('mmdet', 'mmpretrain')
# Models of MMDetection that have none of the heads that are wrapped have one of these.
_OTHER_HEADS = ('track_head', 'head')
# What is below these keys of a head is initialised or scheduled, not computed with.
_NOT_COMPUTED = ('init_cfg', 'test_cfg')


@dataclass
class StockConfig:
    """A config with a model and a head to wrap.

    Attributes:
        library: 'mmdet' or 'mmpretrain', also the scope of its classes.
        name: Path below the configs of the package.
        cfg: The whole config.
        place: Keys from the model to the head.
    """

    library: str
    name: str
    cfg: Config
    place: tuple[str, ...]

    @property
    def detector(self) -> dict:
        """The part of the model in which the head is."""
        node = self.cfg.model
        for key in self.place[:-1]:
            node = node[key]
        return node

    @property
    def head(self) -> dict:
        """The config of the head."""
        return self.detector[self.place[-1]]

    @property
    def family(self) -> str:
        """The classes of the head, and of the box heads in a RoI head."""
        inner = self.head.get('bbox_head') if self.place[-1] == 'roi_head' else None
        parts = inner if isinstance(inner, (list, tuple)) else [inner] if inner else []
        names = dict.fromkeys(name_of(part['type']) for part in parts)
        return name_of(self.head['type']) + (f' ({", ".join(names)})' if names else '')

    @property
    def classifies(self) -> bool:
        """Whether the model is a classifier of MMPretrain."""
        return name_of(self.cfg.model['type']) == 'ImageClassifier'

    @property
    def has_masks(self) -> bool:
        """Whether its pipelines load masks."""
        return "'with_mask': True" in str(self.pipelines())

    def teacher(self) -> dict:
        """The model of a teacher, whose path is relative to the configs of the package."""
        path = str(self.cfg.model.teacher_config)
        return Config.fromfile(_root(self.library).parent / path).model

    def head_options(self) -> dict[str, Any]:
        """What the stock detector hands to its head beside the config."""
        if self.classifies:
            return {}
        options = {key: self.detector.get(key) for key in ('train_cfg', 'test_cfg')}
        if not any(options.values()):
            return {}
        stage = {'roi_head': 'rcnn', 'rpn_head': 'rpn'}.get(self.place[-1])
        if stage:
            options = {key: (value or {}).get(stage) for key, value in options.items()}
        return options

    def pipelines(self) -> list[tuple[list, list | None]]:
        """Each training pipeline, with that of the data set that mixes images, or None."""
        loader = self.cfg.get('train_dataloader') or {}
        found = []
        if isinstance(loader, dict) and loader.get('dataset'):
            found.append(_pipelines_of(loader['dataset']))
        for hook in self.cfg.get('custom_hooks') or ():
            if 'switch_pipeline' in hook:
                found.append((hook['switch_pipeline'], None))
        return [(inner, outer) for inner, outer in found if inner]

    def signature(self) -> tuple:
        """The classes of the model without the backbone: configs that share it train alike."""
        model = {key: value for key, value in self.cfg.model.items() if 'backbone' not in key}
        return self.library, _types(model)


def stock_configs(library: str, parts: Sequence[str] = ()) -> Iterator[StockConfig]:
    """The configs of an installed framework that have a head to wrap.

    Args:
        library: One of :data:`LIBRARIES`.
        parts: Only configs whose path contains one of these; all if empty.
    """
    root = _root(library)
    for path in sorted(root.rglob('*.py')):
        name = str(path.relative_to(root))
        if name.startswith('_base_') or (parts and not any(part in name for part in parts)):
            continue
        try:
            cfg = Config.fromfile(path)
        except Exception:  # a few cannot be read by MMEngine: missing bases, keys or packages
            continue
        place = _counted_place(library, cfg.get('model') or {})
        if place:
            yield StockConfig(library, name, cfg, place)


def _root(library: str) -> Path:
    return Path(str(importlib.import_module(library).__file__)).parent / '.mim' / 'configs'


def _counted_place(library: str, model: dict) -> tuple[str, ...] | None:
    place = head_place(model)
    if library == 'mmpretrain':  # its detectors are not counted
        return place if place == ('head',) else None
    return place or next(((key,) for key in _OTHER_HEADS if model.get(key)), None)


def _pipelines_of(dataset: Any) -> tuple[Any, Any]:
    outer = None
    while 'dataset' in dataset or 'datasets' in dataset:
        if dataset['type'] == 'MultiImageMixDataset':
            outer = dataset['pipeline']
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset.get('pipeline'), outer


def _types(node: Any) -> tuple:
    """The types below a config, with their keys, in a fixed order."""
    if isinstance(node, dict):
        items = sorted((key, value) for key, value in node.items() if key not in _NOT_COMPUTED)
        found = [(key, below) for key, value in items if (below := _types(value))]
        return (*((name_of(node['type']),) if 'type' in node else ()), *found)
    if isinstance(node, (list, tuple)):
        return tuple(dict.fromkeys(below for value in node if (below := _types(value))))
    return ()
