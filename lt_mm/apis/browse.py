"""Pictures of what a training pipeline does to its sources: ``tools/browse_replicas.py``."""

import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from lt_mm.apis.replica_configs import is_recording, record_pipelines
from lt_mm.datasets.checks import explained
from lt_mm.datasets.replica_failures import Failure, find_failures
from lt_mm.datasets.reporting import warn
from lt_mm.datasets.source_catalog import sources_and_replicas
from lt_mm.engine.launch import enter_scope, load_config
from lt_mm.evaluation.replica_summary import ReplicaSummary
from lt_mm.models.heads import ConsistencyOptions, LossTransformHead
from lt_mm.registry import MODELS, configs_of
from lt_mm.structures.errors import RECORD_HINT
from lt_mm.visualization import drawing
from lt_mm.visualization.browse_figures import source_figure
from lt_mm.visualization.failures_figure import failures_figure


def browse_replicas(
    config: str,
    out: str | None = None,
    show: bool = False,
    num_sources: int = 8,
    num_replicas: int | None = None,
    seed: int = 0,
    min_visibility: float | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> tuple[ReplicaSummary, list[Failure]]:
    """Draws replicas of a config's training data, and what was lost in them.

    There is a picture for each source. It shows the source with its annotations and, on
    top, the boxes of all replicas restored by the recorded inverse; then the replicas with
    their own boxes and matrices. ``failures.png`` has a tile for each instance that was
    lost, is less visible than ``min_visibility`` or does not come back exactly.

    Args:
        config: Config file of a detector or a classifier. A training pipeline without
            an InvertiblePipeline is wrapped for the pictures, with a warning.
        out: Folder for the pictures; by default ``replicas`` in the work dir.
        show: Whether to open windows instead, one after the other.
        num_sources: How many sources to draw at random from the data set.
        num_replicas: Replicas of each; by default the sampler's ``num_repeats``, or 4.
        seed: Seed of the choice of sources and of the augmentations.
        min_visibility: Threshold; by default that of the config's LossTransformHead, or
            that head's default.
        cfg_options: Settings to override, keys with dots.

    Returns:
        The counts, and the failures in the order of sources and replicas.

    Raises:
        NoDisplayError: If windows are asked for and cannot be opened.
        MissingRecordError: If some pipelines of the data set record and others do not.
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

    summary, failures, is_detector = ReplicaSummary(), [], False
    for source, replicas in sources_and_replicas(dataset, num_sources, num_replicas, seed):
        found = find_failures(source, replicas, min_visibility)
        failures += found
        is_detector = is_detector or source.is_detection
        summary.add(source, replicas, found)
        finish(source_figure(source, replicas), f'source_{source.source_id:06d}')
    if is_detector:
        finish(failures_figure(failures, min_visibility), 'failures')
    return summary, failures


def _training_set(cfg: Config) -> Any:
    """The built data set of ``train_dataloader``, with a record."""
    enter_scope(cfg)
    options = cfg.train_dataloader.dataset
    if not is_recording(options):
        warn(
            'the training pipeline of this config records nothing; for the pictures it '
            f'is wrapped. To train with LossTransform, {RECORD_HINT}'
        )
        record_pipelines(options)
    with explained(options):
        dataset = DATASETS.build(options)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    return dataset


def _defaults(
    cfg: Config, num_replicas: int | None, min_visibility: float | None
) -> tuple[int, float]:
    """The numbers as given, or else from the config."""
    if num_replicas is None:
        sampler = cfg.train_dataloader.get('sampler') or {}
        num_replicas = sampler.get('num_repeats', 4)
    if min_visibility is None:
        head = next(configs_of(cfg.get('model'), LossTransformHead, MODELS), {})
        min_visibility = head.get('min_visibility', ConsistencyOptions.min_visibility)
    return num_replicas, min_visibility
