"""Consistency of a checkpoint on augmented validation images, and what averaging gives.

:func:`measure_consistency` runs :class:`~lt_mm.evaluation.consistency_metric
.ConsistencyMetric` on m copies of each validation image, and the stock evaluation
without and with the stock test-time augmentation. :func:`probability_matrix` gives the
predictions for the copies of one image, :func:`write_consistency` the files.
"""

import copy
import csv
import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import dump
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import mkdir_or_exist
from mmpretrain.models import AverageClsScoreTTA

from lt_mm.core.agreement import means_by_key
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import build_runner, load_config
from lt_mm.evaluation.consistency_metric import ConsistencyReport
from lt_mm.visualization.consistency_figure import draw_consistency

_PIPELINE = 'lt_mm.InvertiblePipeline'
# Images whose matrices are shown: those at these quantiles of the KL.
_EXAMPLES = (0.5, 0.75, 0.95, 1.0)
_NO_MASK_TTA = 'not evaluated: the stock DetTTAModel merges no masks'


def measure_consistency(
    config: str,
    checkpoint: str,
    num_replicas: int = 4,
    max_images: int | None = None,
    seed: int = 0,
    cfg_options: Mapping[str, Any] | None = None,
    indices: Sequence[int] | None = None,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    with_stock: bool = True,
    work_dir: str | None = None,
    trust_checkpoint: bool = False,
) -> dict[str, Any]:
    """Measures how alike predictions for augmented copies of validation images are.

    The copies are made by the training pipeline, or by ``replica_pipeline`` of the
    config where it has one, and depend on the seed and the image alone: a plain config
    and the one with LossTransform see the same. One process.

    Args:
        config: Config file of a classifier or detector, with LossTransform or without.
        checkpoint: Checkpoint file.
        num_replicas: m, the copies of each image; 2 or more.
        max_images: So many validation images at most, evenly spaced; by default all.
        seed: Seed of the augmentations.
        cfg_options: Settings of the config to override, keys with dots.
        indices: The validation images to take, instead of ``max_images``.
        score_threshold: Smallest confidence of a detection.
        iou_threshold: Smallest IoU of a box with the mean box of its group.
        with_stock: Whether to run the stock evaluation too.
        work_dir: Folder of the logs; by default that of the config.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Returns:
        What can be written as JSON:

        - what :class:`~lt_mm.evaluation.consistency_metric.ConsistencyMetric` measures, by
          its names: ``mean_kl`` (classifiers) or ``mean_iou``, ``matched_share``,
          ``mean_kl_bbox`` (detectors), ``agreement``, ``num_images``, ``num_replicas``,
          ``num_predictions``; None where nothing was found;
        - ``task``, 'classification' or 'detection'; ``config``, ``checkpoint``,
          ``seed``; ``classes``, the names of all;
        - ``per_class``: for each class that was predicted its ``agreement`` and how many
          images or groups of boxes that is the mean of, ``count``;
        - ``images``: a dict for each image;
        - ``examples``: of classifiers, for a few images ``source_id``, ``img_path``,
          ``mean_kl`` and ``probabilities``, m lists of C;
        - ``stock``: the metrics of the config's own ``val_evaluator``. Of classifiers, on
          the same images: ``unaugmented``, ``single_replicas`` (over all copies) and
          ``averaged_replicas`` (the mean prediction over the copies, merged by
          MMPretrain's ``AverageClsScoreTTA``). Of detectors, on the whole validation
          set: ``unaugmented`` and ``tta`` (with the config's ``tta_model`` and
          ``tta_pipeline``, or with MMDetection's ``DetTTAModel`` and a horizontal flip;
          a text where it cannot be had). Empty without ``with_stock``.

    Raises:
        ValueError: If an argument is out of range, or the training pipeline cannot be
            used for single images.
        MissingRecordError: If the pipeline merges images.
        UntrustedCheckpointError: If the checkpoint holds code.
    """
    cfg = _validation_config(config, checkpoint, work_dir, cfg_options)
    metric = dict(
        type='lt_mm.ConsistencyMetric', score_threshold=score_threshold, iou_threshold=iou_threshold
    )
    choice = dict(seed=seed, indices=indices, max_images=max_images)
    with checkpoint_loading(trust_checkpoint):
        runner, samples = _test_replicas(cfg, metric, num_replicas, choice)
        if not with_stock:
            stock = {}
        elif samples:
            stock = _stock_of_classifier(cfg, runner, samples, choice)
        else:
            stock = _stock_of_detector(cfg, runner)
    measured = _report_of(runner)
    missing = (
        dict()
        if samples
        else dict.fromkeys(('matched_share', 'mean_iou', 'agreement', 'mean_kl_bbox'))
    )
    return dict(
        missing,
        **measured.numbers,
        config=config,
        checkpoint=checkpoint,
        seed=seed,
        task='classification' if samples else 'detection',
        per_class=_per_class(measured, _classes_of(runner)),
        images=measured.images,
        classes=_classes_of(runner),
        examples=_examples(measured),
        stock=stock,
    )


def probability_matrix(
    config: str,
    checkpoint: str,
    index: int,
    num_replicas: int = 8,
    seed: int = 0,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    trust_checkpoint: bool = False,
) -> np.ndarray:
    """What a classifier predicts for augmented copies of one validation image.

    Args:
        config: Config file of a classifier, with LossTransform or without; for equal
            numbers below, both see the same copies.
        checkpoint: Checkpoint file.
        index: Image of the validation set.
        num_replicas: m, the number of copies; 2 or more.
        seed: Seed of the augmentations.
        cfg_options: Settings of the config to override.
        work_dir: Folder of the logs; by default that of the config.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Returns:
        (m, C) float32, a row for each copy.

    Raises:
        ValueError: If the model is no classifier, or as :func:`measure_consistency`.
    """
    cfg = _validation_config(config, checkpoint, work_dir, cfg_options)
    with checkpoint_loading(trust_checkpoint):
        runner, _ = _test_replicas(
            cfg,
            dict(type='lt_mm.ConsistencyMetric'),
            num_replicas,
            dict(seed=seed, indices=[index]),
        )
    matrices = list(_report_of(runner).probabilities.values())
    if not matrices:
        raise ValueError(
            f'{config} is a {type(runner.model).__name__}, which gives no '
            'class probabilities of an image; expected a classifier'
        )
    return matrices[0]


def write_consistency(report: Mapping[str, Any], out: str) -> None:
    """Writes what :func:`measure_consistency` gives.

    Args:
        report: Its result.
        out: Folder for ``consistency.json`` (all but the images), ``consistency.csv``
            (a row for each image) and ``consistency.png``.
    """
    mkdir_or_exist(out)
    images = report['images']
    dump(
        {key: value for key, value in report.items() if key != 'images'},
        osp.join(out, 'consistency.json'),
        indent=2,
    )
    with open(osp.join(out, 'consistency.csv'), 'w', newline='') as file:
        writer = csv.DictWriter(file, images[0].keys())
        writer.writeheader()
        writer.writerows(images)
    draw_consistency(report, osp.join(out, 'consistency.png'))


def table_of(report: Mapping[str, Any]) -> str:
    """The numbers of a report as lines of text, name and value."""
    names = [
        name
        for name in (
            'mean_kl',
            'agreement',
            'matched_share',
            'mean_iou',
            'mean_kl_bbox',
            'num_images',
            'num_predictions',
        )
        if name in report
    ]
    rows = [(name, report[name]) for name in names]
    for setting, metrics in report['stock'].items():
        if isinstance(metrics, str):
            rows.append((f'{setting}', metrics))
        else:
            rows += [(f'{setting}: {name}', value) for name, value in metrics.items()]
    width = max(len(name) for name, _ in rows)
    return '\n'.join(
        [
            f'{report["num_replicas"]} replicas of each image, seed '
            f'{report["seed"]}: {report["checkpoint"]}'
        ]
        + [f'  {name:{width}}  {_written(value)}' for name, value in rows]
    )


def _written(value: Any) -> str:
    if value is None:
        return 'nothing found'
    return f'{value:.4f}' if isinstance(value, float) else str(value)


# -- configs ---------------------------------------------------------------------


def _validation_config(
    config: str, checkpoint: str, work_dir: str | None, cfg_options: Mapping[str, Any] | None
) -> Config:
    """The config whose test is its validation, with the weights to load."""
    cfg = load_config(config, work_dir, cfg_options)
    if not cfg.get('val_dataloader'):
        raise ValueError(f'{config} has no val_dataloader; expected a config with validation data')
    cfg.load_from, cfg.resume = checkpoint, False
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    cfg.test_evaluator = copy.deepcopy(cfg.get('val_evaluator'))
    cfg.test_cfg = cfg.get('test_cfg') or dict()
    return cfg


def _on_replicas(
    cfg: Config,
    dataset: Mapping[str, Any],
    num_replicas: int,
    choice: Mapping[str, Any],
    evaluator: Any,
) -> Config:
    """The config that tests copies of chosen images of a data set."""
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


def _replica_data(cfg: Config) -> ConfigDict:
    """The validation data, seen through the recorded training pipeline."""
    dataset = copy.deepcopy(cfg.val_dataloader.dataset)
    if cfg.get('default_scope') == 'mmdet':
        # In test mode, an image that the augmentations always reject stops the run.
        dataset.test_mode = False
    pipeline = list(cfg.get('replica_pipeline') or _training_pipeline(cfg))
    if not any(_is_recording(transform) for transform in pipeline):
        pipeline = [dict(type=_PIPELINE, transforms=pipeline)]
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


def _is_recording(transform: Mapping[str, Any]) -> bool:
    kind = transform['type']
    name = kind if isinstance(kind, str) else kind.__name__
    return name.split('.')[-1] == 'InvertiblePipeline'


def _with_tta(cfg: Config) -> Config:
    """The config with its own test-time augmentation, or the stock tools' default."""
    cfg = copy.deepcopy(cfg)
    model = cfg.get('tta_model') or dict(
        type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    flips = dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    )
    dataset.pipeline = cfg.get('tta_pipeline') or [*dataset.pipeline[:-1], flips]
    cfg.model = dict(model, module=cfg.model)
    return cfg


# -- runs ------------------------------------------------------------------------


class _KeepPredictions(Hook):
    """Keeps the data samples of a classifier, which are small."""

    def __init__(self) -> None:
        self.samples: list[Any] = []

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        self.samples += [sample for sample in outputs if 'pred_score' in sample]


def _test_replicas(
    cfg: Config, metric: Mapping[str, Any], num_replicas: int, choice: Mapping[str, Any]
) -> tuple[Runner, list[Any]]:
    """Runs the metric; the runner, and a classifier's predictions in their order."""
    if num_replicas < 2:
        raise ValueError(
            f'num_replicas is {num_replicas}; expected 2 or more copies of each image, to compare'
        )
    runner = build_runner(_on_replicas(cfg, _replica_data(cfg), num_replicas, choice, [metric]))
    kept = _KeepPredictions()
    runner.register_hook(kept)
    runner.test()
    return runner, kept.samples


def _stock_of_classifier(
    cfg: Config, runner: Runner, samples: list[Any], choice: Mapping[str, Any]
) -> dict[str, Any]:
    """Stock metrics of images as they are, of copies, and of their mean predictions."""
    if not cfg.test_evaluator:
        return {}
    plain = build_runner(
        _on_replicas(cfg, cfg.val_dataloader.dataset, 1, choice, cfg.test_evaluator)
    ).test()
    views: dict[int, list[Any]] = {}
    for sample in samples:
        views.setdefault(sample.source_id, []).append(sample)
    merged = AverageClsScoreTTA(module=runner.model).merge_preds(list(views.values()))
    return dict(
        unaugmented=plain,
        single_replicas=_evaluated(cfg, runner, samples),
        averaged_replicas=_evaluated(cfg, runner, merged),
    )


def _evaluated(cfg: Config, runner: Runner, samples: list[Any]) -> dict[str, float]:
    evaluator = runner.build_evaluator(copy.deepcopy(cfg.test_evaluator))
    evaluator.dataset_meta = runner.test_loop.dataloader.dataset.metainfo
    return evaluator.offline_evaluate(samples)


def _stock_of_detector(cfg: Config, runner: Runner) -> dict[str, Any]:
    """Stock metrics without and with the stock test-time augmentation."""
    if not cfg.test_evaluator:
        return {}
    plain = build_runner(copy.deepcopy(cfg)).test()
    if getattr(runner.model, 'with_mask', False):
        return dict(unaugmented=plain, tta=_NO_MASK_TTA)
    return dict(unaugmented=plain, tta=build_runner(_with_tta(cfg)).test())


# -- what is reported --------------------------------------------------------------


def _report_of(runner: Runner) -> ConsistencyReport:
    return runner.test_loop.evaluator.metrics[0].report


def _classes_of(runner: Runner) -> list[str]:
    return list(runner.test_loop.dataloader.dataset.metainfo.get('classes') or ())


def _per_class(report: ConsistencyReport, classes: Sequence[str]) -> dict[str, dict]:
    labels, means, counts = (
        part.tolist()
        for part in means_by_key(
            torch.from_numpy(report.agreement), torch.from_numpy(report.labels)
        )
    )
    return {
        classes[label] if label < len(classes) else str(label): dict(agreement=mean, count=count)
        for label, mean, count in zip(labels, means, counts)
        if label >= 0
    }


def _examples(report: ConsistencyReport) -> list[dict[str, Any]]:
    """Images whose copies are predicted more or less alike, with the predictions."""
    if not report.probabilities:
        return []
    ordered = sorted(report.images, key=lambda row: row['mean_kl'])
    rows = sorted({round(share * (len(ordered) - 1)) for share in _EXAMPLES})
    return [
        dict(
            source_id=ordered[row]['source_id'],
            img_path=ordered[row]['img_path'],
            mean_kl=ordered[row]['mean_kl'],
            probabilities=report.probabilities[ordered[row]['source_id']].tolist(),
        )
        for row in rows
    ]
