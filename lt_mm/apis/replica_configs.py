"""Configs that look at data through recorded augmentations."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from lt_mm.engine.launch import load_config


def configs_of(node: Any, name: str) -> Iterator[dict]:
    """The configs of a class, anywhere below a config.

    Args:
        node: A config, or a list of configs.
        name: Name of the class, without its scope.
    """
    if isinstance(node, dict):
        kind = node.get('type')
        if getattr(kind, '__name__', str(kind)).rpartition('.')[2] == name:
            yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from configs_of(value, name)


def recording_pipeline(pipeline: list[Any]) -> list[Any]:
    """A pipeline as it is where it records, else wrapped in an InvertiblePipeline."""
    if any(configs_of(pipeline, 'InvertiblePipeline')):
        return pipeline
    return [dict(type='lt_mm.InvertiblePipeline', transforms=pipeline)]


def record_pipelines(dataset: dict) -> None:
    """Makes the pipelines of a data set's config, and of those inside it, record."""
    for inner in dataset.get('datasets', [dataset.get('dataset')]):
        if inner is not None:
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
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.test_evaluator = copy.deepcopy(cfg.get('val_evaluator'))
    cfg.test_cfg = cfg.get('test_cfg') or dict()
    return cfg


def validation_replicas(cfg: Config) -> ConfigDict:
    """The data set of the validation images, seen through the training pipeline.

    ``replica_pipeline`` of the config takes the place of that pipeline where it is set. A
    pipeline that does not record is wrapped.

    Raises:
        ValueError: If the training pipeline is not one for single images.
    """
    dataset = copy.deepcopy(cfg.val_dataloader.dataset)
    if cfg.get('default_scope') == 'mmdet':
        # In test mode, an image that the augmentations always reject stops the run.
        dataset.test_mode = False
    pipeline = recording_pipeline(list(cfg.get('replica_pipeline') or _training_pipeline(cfg)))
    if len(pipeline) == 1:
        # No other image may take the place of one.
        pipeline = [dict(pipeline[0], on_bad_image='raise')]
    dataset.pipeline = pipeline
    return dataset


def _training_pipeline(cfg: Config) -> list[Any]:
    dataset = cfg.train_dataloader.dataset
    while 'pipeline' not in dataset and ('dataset' in dataset or 'datasets' in dataset):
        dataset = dataset.get('dataset') or dataset.datasets[0]
    if 'pipeline' not in dataset or 'MultiImageMix' in str(dataset.get('type')):
        raise ValueError(
            f'the training data set is a {dataset.get("type")}, whose pipeline is not '
            'one for a single image; name the one to make copies with in the config: '
            'replica_pipeline = [<transforms, from loading to packing>]'
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
    cfg = copy.deepcopy(cfg)
    # Assigned: the update of a ConfigDict merges.
    loader = cfg.test_dataloader
    loader.pop('batch_sampler', None)
    loader.drop_last = False
    loader.sampler = dict(type='DefaultSampler', shuffle=False)
    loader.dataset = dict(
        type='lt_mm.ReplicaDataset', dataset=dataset, num_replicas=num_replicas, **choice
    )
    cfg.test_evaluator = evaluator
    return cfg
