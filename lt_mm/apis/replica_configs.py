"""Configs that look at data through recorded augmentations."""

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmengine.config import Config, ConfigDict

from lt_mm.datasets.checks import innermost_configs, parts_of
from lt_mm.datasets.transforms.invertible_pipeline import InvertiblePipeline
from lt_mm.engine.launch import load_config
from lt_mm.registry import DATASETS, TRANSFORMS, builds, configs_of

_PIPELINE_HINTS = dict(
    training='. Name the one to make copies with in the config: '
    'replica_pipeline = [<transforms, from loading to packing>]',
    validation='. Change val_dataloader.dataset',
)


def is_recording(node: Any) -> bool:
    """Whether an InvertiblePipeline is anywhere below a config, or a list of configs."""
    return any(configs_of(node, InvertiblePipeline, TRANSFORMS))


def recording_pipeline(pipeline: list[Any]) -> list[Any]:
    """A pipeline as it is where it records, else wrapped in an InvertiblePipeline."""
    if is_recording(pipeline):
        return pipeline
    return [dict(type='lt_mm.InvertiblePipeline', transforms=pipeline)]


def record_pipelines(dataset: dict) -> None:
    """Makes the pipelines of a data set's config, and of those inside it, record."""
    for inner in parts_of(dataset):
        record_pipelines(inner)
    if dataset.get('pipeline'):
        dataset['pipeline'] = recording_pipeline(dataset['pipeline'])


def validation_config(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Config:
    """The config whose test is its validation, with the weights to load.

    Raises:
        ValueError: If the config has no validation data.
    """
    cfg = load_config(config, work_dir, cfg_options)
    if not cfg.get('val_dataloader'):
        raise ValueError(f'{config} has no val_dataloader; expected a config with validation data')
    cfg.load_from, cfg.resume = checkpoint, False
    cfg.pop('runner_type', None)  # what is measured needs no strategy
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.test_evaluator = copy.deepcopy(cfg.get('val_evaluator'))
    cfg.test_cfg = cfg.get('test_cfg') or dict()
    return cfg


def validation_replicas(cfg: Config) -> ConfigDict:
    """The data set of the validation images, seen through the training pipeline.

    ``replica_pipeline`` of the config takes the place of that pipeline where it is set. A
    pipeline that does not record is wrapped. Wrappers of data sets stay.

    Raises:
        ValueError: If the training pipeline is not one for single images.
    """
    dataset = copy.deepcopy(cfg.val_dataloader.dataset)
    pipeline = cfg.get('replica_pipeline') or _pipeline_of(cfg.train_dataloader.dataset, 'training')
    pipeline = recording_pipeline(list(pipeline))
    if len(pipeline) == 1:
        # No other image may take the place of one.
        pipeline = [dict(pipeline[0], on_bad_image='raise')]
    _pipeline_of(dataset, 'validation')
    for inner in innermost_configs(dataset):
        inner.pipeline = copy.deepcopy(pipeline)
        if builds(inner, BaseDetDataset, DATASETS, cfg.get('default_scope')):
            # In test mode, an image that the augmentations always reject stops the run.
            inner.test_mode = False
    return dataset


def _pipeline_of(dataset: Any, role: str) -> list[Any]:
    """The pipeline of the first data set that loads images, where no wrapper has its own."""
    parts = parts_of(dataset)
    if parts and 'pipeline' not in dataset:
        return _pipeline_of(parts[0], role)
    kind = dataset.get('type')
    name = getattr(kind, '__name__', kind)
    if parts or 'pipeline' not in dataset:
        raise ValueError(
            f'the {role} data set is a {name}, whose pipeline is not one for a single image; '
            'expected data sets that load images, with a pipeline each, in wrappers that have none'
            + _PIPELINE_HINTS[role]
        )
    return dataset.pipeline


def on_replicas(
    cfg: Config,
    dataset: Mapping[str, Any],
    num_replicas: int,
    choice: Mapping[str, Any],
    evaluator: Any,
) -> Config:
    """The config that tests copies of chosen images of a data set.

    Args:
        cfg: See :func:`validation_config`.
        dataset: Config of the data set; its pipeline augments.
        num_replicas: m, the copies of each image.
        choice: ``seed``, ``indices`` and ``max_images`` of a
            :class:`~lt_mm.datasets.ReplicaDataset`.
        evaluator: Config of the metrics.
    """
    replicas = dict(
        type='lt_mm.ReplicaDataset', dataset=dataset, num_replicas=num_replicas, **choice
    )
    return on_dataset(cfg, replicas, evaluator)


def on_dataset(cfg: Config, dataset: Mapping[str, Any], evaluator: Any) -> Config:
    """The config that tests every sample of another data set, in order.

    Args:
        cfg: See :func:`validation_config`.
        dataset: Config of the data set.
        evaluator: Config of the metrics.
    """
    cfg = copy.deepcopy(cfg)
    # Assigned: the update of a ConfigDict merges.
    loader = cfg.test_dataloader
    loader.pop('batch_sampler', None)
    loader.drop_last = False
    loader.sampler = dict(type='mmengine.DefaultSampler', shuffle=False)
    loader.dataset = dataset
    cfg.test_evaluator = evaluator
    return cfg
