"""Flicker, consistency and calibration of checkpoints, and a picture of the flicker.

:func:`measure_stability` measures one checkpoint on frames of a slow pan and zoom over validation
images, :func:`write_stability` writes the table and the picture of one or two.
"""

import copy
import os.path as osp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.fileio import dump
from mmengine.utils import mkdir_or_exist

from lt_mm.apis.consistency import CONSISTENCY, measure_consistency
from lt_mm.apis.replica_configs import on_dataset, on_replicas, validation_config
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import build_runner
from lt_mm.evaluation.flicker_metric import FlickerMetric
from lt_mm.visualization.drawing import save_figure
from lt_mm.visualization.flicker_figures import box_frames, class_strips, save_animation


@dataclass
class StabilityReport:
    """What was measured of a checkpoint.

    Attributes:
        name: Name of the config.
        checkpoint: Checkpoint file.
        numbers: The measures, by their names with the prefix of their metric.
        classes: Names of the classes.
        dataset: The :class:`~lt_mm.datasets.PanZoomDataset` of the frames.
        metric: The :class:`~lt_mm.evaluation.FlickerMetric` after its evaluation.
    """

    name: str
    checkpoint: str
    numbers: dict[str, float]
    classes: list[str]
    dataset: Any
    metric: FlickerMetric

    @property
    def is_detector(self) -> bool:
        """Whether boxes were predicted."""
        return 'boxes' in next(iter(self.metric.sequences.values()))[0]

    def frames_of(self, source_id: int) -> list[np.ndarray]:
        """The frames of an image, (H, W, 3) uint8 RGB each."""
        first = list(self.dataset.indices).index(source_id) * self.dataset.num_copies
        return [self.dataset.frame(first + number) for number in range(self.dataset.num_copies)]


def measure_stability(
    config: str,
    checkpoint: str,
    num_frames: int = 16,
    max_images: int | None = 50,
    seed: int = 0,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    num_replicas: int = 0,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    trust_checkpoint: bool = False,
) -> StabilityReport:
    """Measures how steady the predictions of a checkpoint are. Runs in one process.

    The frames depend on the seed and the image alone, so two models see the same ones.

    Args:
        config: Config file of a classifier or detector, with LossTransform or without.
        checkpoint: Checkpoint file.
        num_frames: T, the frames of each image; 2 or more.
        max_images: At most so many validation images, evenly spaced; None for all.
        seed: Seed of the paths.
        score_threshold: Smallest confidence of a detection.
        iou_threshold: Smallest IoU of matched boxes.
        num_replicas: m; with 2 or more, :func:`~lt_mm.apis.consistency.measure_consistency` runs
            on m augmented copies of each of the images too.
        cfg_options: Settings of the config to override, keys with dots.
        work_dir: Folder of the logs; by default that of the config.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Returns:
        The report. Its numbers are those of :class:`~lt_mm.evaluation.FlickerMetric`
        ('flicker/'); of classifiers with one label an image those of
        :class:`~lt_mm.evaluation.CalibrationMetric` on the images themselves ('calibration/'); and
        those of :class:`~lt_mm.evaluation.ConsistencyMetric` ('consistency/').
    """
    cfg = validation_config(config, checkpoint, work_dir, cfg_options)
    choice: dict[str, Any] = dict(seed=seed, max_images=max_images)
    frames = dict(
        type='lt_mm.PanZoomDataset',
        dataset=copy.deepcopy(cfg.val_dataloader.dataset),
        num_frames=num_frames,
        **choice,
    )
    thresholds: dict[str, Any] = dict(score_threshold=score_threshold, iou_threshold=iou_threshold)
    evaluator = [dict(type='lt_mm.FlickerMetric', **thresholds)]
    with checkpoint_loading(trust_checkpoint):
        runner = build_runner(on_dataset(cfg, frames, evaluator))
        numbers = dict(runner.test())
        dataset = runner.test_loop.dataloader.dataset
        metric = runner.test_loop.evaluator.metrics[0]
        if 'flicker/kl' in numbers and _has_one_label(dataset):
            calibration = [dict(type='lt_mm.CalibrationMetric')]
            plain = on_replicas(cfg, cfg.val_dataloader.dataset, 1, choice, calibration)
            numbers |= build_runner(plain).test()
    if num_replicas:
        found = measure_consistency(
            config,
            checkpoint,
            num_replicas,
            **choice,
            **thresholds,
            cfg_options=cfg_options,
            with_stock=False,
            work_dir=work_dir,
            trust_checkpoint=trust_checkpoint,
        )
        kept = {name: found[name] for name in CONSISTENCY if found.get(name) is not None}
        numbers |= {f'consistency/{name}': value for name, value in kept.items()}
    return StabilityReport(
        osp.splitext(osp.basename(config))[0],
        checkpoint,
        {name: float(value) for name, value in numbers.items()},
        list(dataset.metainfo.get('classes') or ()),
        dataset,
        metric,
    )


def _has_one_label(dataset: Any) -> bool:
    """Whether the images of a classifier's data set have one label each."""
    return np.ndim(dataset.get_data_info(0).get('gt_label', ())) == 0


def write_stability(reports: Sequence[StabilityReport], out: str, max_strips: int = 6) -> str:
    """Writes the numbers and the picture of one checkpoint, or of two beside each other.

    The picture shows the images whose predictions flicker most, the models taken together, so it
    favours neither of them and shows the worst case of both.

    Args:
        reports: One report, or that of the baseline and that to compare with it.
        out: Folder for ``stability.json``, and ``flicker.gif`` (detectors: one image) or
            ``flicker.png`` (classifiers).
        max_strips: Number of images in the picture of classifiers.

    Returns:
        The path of the picture.
    """
    mkdir_or_exist(out)
    numbers = [
        dict(name=report.name, checkpoint=report.checkpoint, **report.numbers) for report in reports
    ]
    dump(numbers, osp.join(out, 'stability.json'), indent=2)
    worst = _most_flickering(reports)
    first = reports[0]
    # One image may be an exception, so the picture tells of all of them as well.
    titles, overall = _titles(reports), [_overall(report) for report in reports]
    if first.is_detector:
        path = osp.join(out, 'flicker.gif')
        changes = [report.metric.changes(worst[0]) for report in reports]
        matrices = [frame['frame_matrix'] for frame in first.metric.sequences[worst[0]]]
        panels = {f'{title}\n{text}': own for title, text, own in zip(titles, overall, changes)}
        pictures = box_frames(panels, first.frames_of(worst[0]), matrices, first.classes)
        save_animation(pictures, path)
        return path
    path, shown = osp.join(out, 'flicker.png'), worst[:max_strips]
    images = [first.frames_of(source) for source in shown]
    rows = [[report.metric.probabilities(source) for report in reports] for source in shown]
    heading = '\n'.join(f'{title}, {text}' for title, text in zip(titles, overall))
    save_figure(class_strips(titles, images, rows, first.classes, heading), path)
    return path


def _overall(report: StabilityReport) -> str:
    """The most telling number of a report, in words."""
    name = 'blinking' if report.is_detector else 'label_changes'
    value, count = report.numbers.get(f'flicker/{name}'), len(report.metric.images)
    share = 'nothing found' if value is None else f'{100 * value:.1f} % {name.replace("_", " ")}'
    return f'{count} images: {share}'


def _titles(reports: Sequence[StabilityReport]) -> list[str]:
    """The names of the configs; the folders of the checkpoints too where the names are equal."""
    names = [report.name for report in reports]
    if len(set(names)) == len(names):
        return names
    return [
        f'{report.name} ({osp.join(*osp.normpath(report.checkpoint).split(osp.sep)[-3:])})'
        for report in reports
    ]


def _most_flickering(reports: Sequence[StabilityReport]) -> list[int]:
    """The source ids, those first whose predictions change most in all reports together."""
    totals: dict[int, float] = {}
    for report in reports:
        for source, values in report.metric.images.items():
            own = values.get('blinking', values.get('label_changes')) or 0.0
            totals[source] = totals.get(source, 0.0) + own
    return sorted(totals, key=lambda source: (-totals[source], source))


def table_of(reports: Sequence[StabilityReport]) -> str:
    """The numbers of one or two reports as lines of text, a column each."""
    names = list(dict.fromkeys(name for report in reports for name in report.numbers))
    titles = _titles(reports)
    width, column = max(map(len, names)), max(12, *map(len, titles))
    lines = [' ' * width + ''.join(f'  {title:>{column}}' for title in titles)]
    for name in names:
        cells = [_text_of(report.numbers.get(name)) for report in reports]
        lines.append(f'{name:{width}}' + ''.join(f'  {cell:>{column}}' for cell in cells))
    return '\n'.join(lines)


def _text_of(value: float | None) -> str:
    if value is None:
        return 'nothing found'
    return str(int(value)) if value == int(value) and value > 1 else f'{value:.4f}'
