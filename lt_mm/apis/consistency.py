"""Consistency of a checkpoint on augmented validation images, and what averaging gives.

:func:`measure_consistency` runs :class:`~lt_mm.evaluation.consistency_metric
.ConsistencyMetric` on m copies of each validation image, and the stock evaluation
without and with averaging over augmentations. :func:`probability_matrix` gives the
predictions for the copies of one image, :func:`write_consistency` the files.
"""

import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import mkdir_or_exist

from lt_mm.apis.replica_configs import on_replicas, validation_config, validation_replicas
from lt_mm.apis.stock_evaluation import evaluate_classifier, evaluate_detector
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import build_runner
from lt_mm.evaluation.consistency_report import ConsistencyReport
from lt_mm.visualization.consistency_figure import consistency_figure
from lt_mm.visualization.drawing import save_figure

# What is measured of classifiers or of detectors, in the order in which it is shown.
CONSISTENCY = (
    'mean_kl',
    'calibrated_kl',
    'temperature',
    'agreement',
    'matched_share',
    'mean_iou',
    'score_jitter',
    'mean_kl_bbox',
)


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
    config where it has one. They depend on the seed and the image alone, so a plain
    config and the one with LossTransform see the same copies. Runs in one process.

    Args:
        config: Config file of a classifier or detector, with LossTransform or without.
        checkpoint: Checkpoint file.
        num_replicas: m, the copies of each image; 2 or more.
        max_images: At most so many validation images, evenly spaced; by default all.
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
          its names: ``mean_kl``, ``calibrated_kl``, ``temperature`` (classifiers) or
          ``mean_iou``, ``matched_share``,
          ``score_jitter``, ``mean_kl_bbox`` (detectors), ``agreement``, ``num_images``,
          ``num_replicas``, ``num_predictions``; None where nothing was found;
        - ``task``, 'classification' or 'detection'; ``config``, ``checkpoint``,
          ``seed``; ``classes``, the names of all classes;
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
    cfg = validation_config(config, checkpoint, work_dir, cfg_options)
    choice = dict(seed=seed, indices=indices, max_images=max_images)
    thresholds = dict(score_threshold=score_threshold, iou_threshold=iou_threshold)
    stock: dict[str, Any] = {}
    with checkpoint_loading(trust_checkpoint):
        runner, report, samples = _test_replicas(cfg, num_replicas, choice, **thresholds)
        if with_stock and samples:
            stock = evaluate_classifier(cfg, runner, samples, choice)
        elif with_stock:
            stock = evaluate_detector(cfg, runner)
    classes = list(runner.test_loop.dataloader.dataset.metainfo.get('classes') or ())
    return dict(
        report.numbers,
        config=config,
        checkpoint=checkpoint,
        seed=seed,
        task='classification' if samples else 'detection',
        per_class=report.per_class(classes),
        images=report.images,
        classes=classes,
        examples=report.examples(),
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
            ``index``, ``num_replicas`` and ``seed``, both see the same copies.
        checkpoint: Checkpoint file.
        index: Number of the image in the validation set.
        num_replicas: m, the number of copies; 2 or more.
        seed: Seed of the augmentations.
        cfg_options: Settings of the config to override.
        work_dir: Folder of the logs; by default that of the config.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Returns:
        (m, C) float32, a row for each copy.

    Raises:
        ValueError: If the model is not a classifier, and as :func:`measure_consistency`.
    """
    cfg = validation_config(config, checkpoint, work_dir, cfg_options)
    with checkpoint_loading(trust_checkpoint):
        runner, report, _ = _test_replicas(cfg, num_replicas, dict(seed=seed, indices=[index]))
    if not report.probabilities:
        raise ValueError(
            f'{config} is a {type(runner.model).__name__}, which gives no '
            'class probabilities of an image; expected a classifier'
        )
    return next(iter(report.probabilities.values()))


class _KeepPredictions(Hook):
    """Keeps the data samples of a classifier, which are small."""

    def __init__(self) -> None:
        self.samples: list[Any] = []

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.samples += [sample for sample in outputs if 'pred_score' in sample]


def _test_replicas(
    cfg: Config, num_replicas: int, choice: Mapping[str, Any], **thresholds: float
) -> tuple[Runner, ConsistencyReport, list[Any]]:
    """Runs the metric; the runner, the report, and a classifier's predictions in order."""
    if num_replicas < 2:
        raise ValueError(
            f'num_replicas is {num_replicas}; expected 2 or more copies of each image, to compare'
        )
    metric = dict(type='lt_mm.ConsistencyMetric', **thresholds)
    runner = build_runner(
        on_replicas(cfg, validation_replicas(cfg), num_replicas, choice, [metric])
    )
    kept = _KeepPredictions()
    runner.register_hook(kept)
    runner.test()
    return runner, runner.test_loop.evaluator.metrics[0].report, kept.samples


def write_consistency(report: Mapping[str, Any], out: str) -> None:
    """Writes what :func:`measure_consistency` gives.

    Args:
        report: Its result.
        out: Folder for ``consistency.json`` (all but the images), ``consistency.csv``
            (a row for each image) and ``consistency.png``.
    """
    mkdir_or_exist(out)
    numbers = {key: value for key, value in report.items() if key != 'images'}
    dump(numbers, osp.join(out, 'consistency.json'), indent=2)
    pd.DataFrame(report['images']).to_csv(osp.join(out, 'consistency.csv'), index=False)
    save_figure(consistency_figure(report), osp.join(out, 'consistency.png'))


def table_of(report: Mapping[str, Any]) -> str:
    """The numbers of a report as lines of text, name and value."""
    names = (*CONSISTENCY, 'num_images', 'num_predictions')
    rows = {name: report[name] for name in names if name in report}
    for setting, metrics in report['stock'].items():
        if isinstance(metrics, str):
            rows[setting] = metrics
        else:
            rows |= {f'{setting}: {name}': value for name, value in metrics.items()}
    heading = (
        f'{report["num_replicas"]} replicas of each image, seed '
        f'{report["seed"]}: {report["checkpoint"]}'
    )
    width = max(map(len, rows))
    return '\n'.join(
        [heading, *(f'  {name:{width}}  {_text_of(value)}' for name, value in rows.items())]
    )


def _text_of(value: Any) -> str:
    if value is None:
        return 'nothing found'
    return f'{value:.4f}' if isinstance(value, float) else str(value)
