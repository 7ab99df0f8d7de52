"""What a training pipeline does to its sources, drawn: ``tools/browse_replicas.py``."""

import os.path as osp
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from lt_mm.datasets.checks import explained
from lt_mm.datasets.reporting import warn
from lt_mm.engine.launch import load_config
from lt_mm.models.heads.loss_transform_head import ConsistencyOptions
from lt_mm.structures.errors import RECORD_HINT
from lt_mm.visualization import drawing
from lt_mm.visualization.browse_figures import failures_figure, source_figure
from lt_mm.visualization.replicas import (
    BELOW,
    INEXACT,
    LOST,
    Failure,
    Replica,
    Source,
    find_failures,
    sources_and_replicas,
)


@dataclass
class Summary:
    """Numbers drawn.

    Attributes:
        sources: Source images.
        replicas: Replicas of them.
        instances: Annotations that the replicas should show: those of the source, in
            each of its replicas.
        kept: Of these, how many are there.
        lost: The others.
        below_visibility: Of those kept, how many are less visible than the threshold.
        inexact: Of those kept, how many do not come back exactly: rotated or sheared.
        mixed_in: Instances of other sources (Mosaic, MixUp, CopyPaste).
        largest_error: Of all exact instances, those mixed in too, in pixels of the
            source; None without. Boxes that a transform makes anew from masks
            (CopyPaste) follow the pixels, and so are off by about one of these.
    """

    sources: int = 0
    replicas: int = 0
    instances: int = 0
    kept: int = 0
    lost: int = 0
    below_visibility: int = 0
    inexact: int = 0
    mixed_in: int = 0
    largest_error: float | None = None

    def add(self, source: Source, replicas: list[Replica], failures: list[Failure]) -> None:
        """Adds a source, its replicas and what :func:`find_failures` found in them."""
        own = [each for each in replicas if each.source_id == source.source_id]
        # A mosaic may show a source twice.
        lost, below, inexact = (
            len({(each.number, each.row) for each in failures if kind in each.kinds})
            for kind in (LOST, BELOW, INEXACT)
        )
        self.sources += 1
        self.replicas += len(replicas)
        self.instances += len(own) * len(source.rows)
        self.kept += len(own) * len(source.rows) - lost
        self.lost += lost
        self.below_visibility += below
        self.inexact += inexact
        for seen in [each.instances for each in replicas if each.instances is not None]:
            self.mixed_in += len(seen.boxes) - len(seen.of(source.source_id))
            errors = seen.errors[seen.exact].tolist()
            if errors:
                self.largest_error = max(errors + [self.largest_error or 0.0])

    def __str__(self) -> str:
        if not self.instances and not self.mixed_in:
            return f'{self.sources} sources, {self.replicas} replicas, without annotated instances'
        counts = ', '.join(
            f'{getattr(self, field.name)} {field.name.replace("_", " ")}'
            for field in fields(self)[:-1]
        )
        error = (
            'no exact instance'
            if self.largest_error is None
            else f'largest restoration error {self.largest_error:.2g} px'
        )
        return f'{counts}; {error}'


def browse_replicas(
    config: str,
    out: str | None = None,
    show: bool = False,
    num_sources: int = 8,
    num_replicas: int | None = None,
    seed: int = 0,
    min_visibility: float | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> tuple[Summary, list[Failure]]:
    """Draws replicas of a config's training data, and what was lost in them.

    A picture for each source: the source with its annotations and, on top, the boxes of
    all replicas restored by the recorded inverse; then the replicas with their own
    boxes and matrices. And ``failures.png``, a tile for each instance that was lost, is
    less visible than ``min_visibility`` or does not come back exactly.

    Args:
        config: Config file of a detector or a classifier. A training pipeline without
            an InvertiblePipeline is wrapped for the pictures, with a warning.
        out: Folder for the pictures; by default ``replicas`` in the work dir.
        show: Whether to open windows instead, one after the other.
        num_sources: How many sources, drawn by the seed from the data set.
        num_replicas: Replicas of each; by default the sampler's ``num_repeats``, or 4.
        seed: Of the sources and the augmentations.
        min_visibility: Threshold; by default that of the config's LossTransformHead, or
            that head's default.
        cfg_options: Settings to override, keys with dots.

    Returns:
        The numbers, and the failures in the order of sources and replicas.

    Raises:
        NoDisplayError: If windows are wanted and cannot be opened.
        MissingRecordError: If a part of the pipeline is wrapped but does not record.
        ValueError: If a number is out of range.
    """
    for name, value in (('num_sources', num_sources), ('num_replicas', num_replicas)):
        if value is not None and value < 1:
            raise ValueError(f'{name} is {value}; expected 1 or more')
    if show:
        drawing.check_display()
    cfg = load_config(config, cfg_options=cfg_options)
    dataset = _training_set(cfg)
    num_replicas, min_visibility = _defaults(cfg, num_replicas, min_visibility)
    out = out or osp.join(cfg.work_dir, 'replicas')

    def finish(figure: Any, name: str) -> None:
        if show:
            drawing.show_in_window(figure, name)
        else:
            drawing.save_figure(figure, osp.join(out, f'{name}.png'))

    summary, failures, is_detector = Summary(), [], False
    for source, replicas in sources_and_replicas(dataset, num_sources, num_replicas, seed):
        found = find_failures(source, replicas, min_visibility)
        failures += found
        is_detector = is_detector or source.boxes is not None
        summary.add(source, replicas, found)
        finish(source_figure(source, replicas), f'source_{source.source_id:06d}')
    if is_detector:
        finish(failures_figure(failures, min_visibility), 'failures')
    return summary, failures


def _training_set(cfg: Config) -> Any:
    """The built data set of ``train_dataloader``, with a record."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    options = cfg.train_dataloader.dataset
    if not any(_of_type(options, 'InvertiblePipeline')):
        warn(
            'the training pipeline of this config records nothing; for the pictures it '
            f'is wrapped. To train with LossTransform, {RECORD_HINT}'
        )
        _wrap_pipelines(options)
    with explained(options):
        dataset = DATASETS.build(options)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    return dataset


def _wrap_pipelines(options: dict) -> None:
    """Wraps the pipelines of a data set and of those in it, in place."""
    for inner in options.get('datasets', [options.get('dataset')]):
        if inner is not None:
            _wrap_pipelines(inner)
    if options.get('pipeline'):
        options['pipeline'] = [
            dict(type='lt_mm.InvertiblePipeline', transforms=options['pipeline'])
        ]


def _defaults(
    cfg: Config, num_replicas: int | None, min_visibility: float | None
) -> tuple[int, float]:
    """What was not given is taken from the config."""
    if num_replicas is None:
        sampler = cfg.train_dataloader.get('sampler') or {}
        num_replicas = sampler.get('num_repeats', 4)
    if min_visibility is None:
        head = next(_of_type(cfg.get('model'), 'LossTransformHead'), {})
        min_visibility = head.get('min_visibility', ConsistencyOptions.min_visibility)
    return num_replicas, min_visibility


def _of_type(node: Any, name: str) -> Iterator[dict]:
    """The configs of a class, with or without its scope, anywhere below a config."""
    if isinstance(node, dict):
        if str(node.get('type')).rpartition('.')[2] == name:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _of_type(value, name)
