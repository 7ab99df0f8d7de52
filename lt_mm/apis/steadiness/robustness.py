"""What is left of the accuracy of a checkpoint where images are corrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.datasets import BaseDetDataset
from torch import Tensor

from lt_mm.apis.replica_configs import on_replicas, validation_config
from lt_mm.core.measures import robustness
from lt_mm.datasets.altered.corruption import Corruption, is_installed
from lt_mm.datasets.altered.insertion import insert_after_loading
from lt_mm.engine.checkpoints import checkpoint_loading
from lt_mm.engine.launch import build_runner

# The published kinds, in their order.
KINDS = (
    *('gaussian_noise', 'shot_noise', 'impulse_noise'),
    *('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    *('snow', 'frost', 'fog', 'brightness'),
    *('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
)
SEVERITIES = (1, 2, 3, 4, 5)
_METRICS = ('coco/bbox_mAP', 'pascal_voc/mAP', 'accuracy/top1')
_PERCENT = ('accuracy/top1',)  # from 0 to 100


@dataclass
class RobustnessReport:
    """What was measured of a checkpoint.

    Attributes:
        metric: Name of the stock metric.
        clean: Its value on the images as they are; of classifiers a share in [0, 1].
        kinds: The K corruptions that could be measured.
        severities: The S severities.
        values: (K, S), the value of the metric.
        left_out: For each other corruption why it could not be measured.
    """

    metric: str
    clean: float
    kinds: list[str]
    severities: list[int]
    values: Tensor
    left_out: dict[str, str]

    def numbers(self, baseline: 'RobustnessReport | None' = None) -> dict[str, Any]:
        """Clean value, mean of each kind, mPC, rPC; with a baseline of classifiers mCE."""
        rows: dict[str, Any] = dict(metric=self.metric, clean=self.clean)
        rows |= dict(zip(self.kinds, self.values.mean(dim=1).tolist()))
        rows['mPC'] = robustness.mean_corrupted(self.values)
        rows['rPC'] = robustness.relative_corrupted(self.values, self.clean)
        if baseline is not None and self.metric in _PERCENT:
            rows['mCE'] = robustness.mean_corruption_error(1 - self.values, 1 - baseline.values)
        return rows


def measure_robustness(
    config: str,
    checkpoint: str,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    max_images: int | None = None,
    seed: int = 0,
    metric: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    trust_checkpoint: bool = False,
) -> RobustnessReport:
    """Runs the config's own evaluation on corrupted validation images, in one process.

    Images are corrupted right after loading. What is drawn depends on the seed and the image alone,
    so two models see the same images.

    Args:
        config: Config file of a classifier or detector.
        checkpoint: Checkpoint file.
        kinds: Which of :data:`KINDS`.
        severities: From 1 to 5.
        max_images: At most so many validation images, evenly spaced; of classifiers alone, since
            the metrics of detectors compare with all annotations.
        seed: Seed of the corruptions.
        metric: Name of the stock metric; by default the first that is there of AP, top-1.
        cfg_options: Settings of the config to override, keys with dots.
        work_dir: Folder of the logs; by default that of the config.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Raises:
        ImportError: If the package of the corruptions is not installed.
        ValueError: If an option is out of range, or no corruption can be applied.
    """
    _check_options(kinds, severities)
    cfg = validation_config(config, checkpoint, work_dir, cfg_options)
    cfg.test_dataloader.persistent_workers = False  # they would keep the first corruption
    choice: dict[str, Any] = dict(seed=seed, max_images=max_images)
    with checkpoint_loading(trust_checkpoint):
        runner = build_runner(
            on_replicas(cfg, cfg.val_dataloader.dataset, 1, choice, cfg.test_evaluator)
        )
        dataset = runner.test_loop.dataloader.dataset
        if max_images is not None and isinstance(dataset.dataset, BaseDetDataset):
            raise ValueError(
                f'max_images is {max_images}, but the metrics of a detector compare with the '
                'annotations of all images; expected None. Take fewer kinds or severities'
            )
        found = runner.test()
        name = _metric_of(found, metric)
        corruption = Corruption()
        insert_after_loading(dataset, corruption)
        left_out = _impossible(dataset, corruption, kinds, severities)
        possible = [kind for kind in kinds if kind not in left_out]
        if not possible:
            raise ValueError(f'none of the corruptions can be applied to the images: {left_out}')
        rows: list[list[float]] = []
        for kind in possible:
            corruption.kind = kind
            rows.append([])
            for corruption.severity in severities:
                rows[-1].append(float(runner.test()[name]))
    scale = 0.01 if name in _PERCENT else 1.0
    values = scale * torch.tensor(rows, dtype=torch.float64)
    return RobustnessReport(
        name, scale * float(found[name]), possible, list(severities), values, left_out
    )


def _check_options(kinds: Sequence[str], severities: Sequence[int]) -> None:
    if not is_installed():
        raise ImportError(
            'the corruptions need the package imagecorruptions, which is not installed: '
            'pip install imagecorruptions-imaug'
        )
    if not (kinds and severities and set(kinds) <= set(KINDS) and set(severities) <= {*SEVERITIES}):
        raise ValueError(
            f'kinds are {kinds} and severities {severities}; expected some of '
            f'{", ".join(KINDS)}, and of {SEVERITIES}'
        )


def _metric_of(found: Mapping[str, float], metric: str | None) -> str:
    for name in _METRICS if metric is None else (metric,):
        if name in found:
            return name
    raise ValueError(
        f'the evaluation gives {sorted(found)}; expected {metric or " or ".join(_METRICS)} among '
        'them. Name the one that is to be measured: --metric NAME'
    )


def _impossible(
    dataset: Any, corruption: Corruption, kinds: Sequence[str], severities: Sequence[int]
) -> dict[str, str]:
    """The corruptions that fail on the first image, as some do on small ones, and why."""
    failed = {}
    for corruption.kind in kinds:
        try:
            for corruption.severity in severities:
                dataset[0]
        except Exception as error:  # of numpy, scikit-image or OpenCV
            failed[corruption.kind] = f'{type(error).__name__}: {str(error).strip()[:100]}'
    return failed


def table_of(report: RobustnessReport, baseline: RobustnessReport | None = None) -> str:
    """The numbers of a report, and of a baseline, as lines of text, a column each."""
    columns = [] if baseline is None else [baseline.numbers()]
    columns.append(report.numbers(baseline))
    names = list(columns[-1])
    width = max(map(len, names))
    lines = [] if baseline is None else [f'{"":{width}}  {"baseline":>14}  {"model":>14}']
    for name in names:
        cells = ''.join(f'  {_text_of(column.get(name)):>14}' for column in columns)
        lines.append(f'{name:{width}}{cells}')
    lines += [f'left out: {kind} ({reason})' for kind, reason in report.left_out.items()]
    return '\n'.join(lines)


def _text_of(value: Any) -> str:
    return f'{value:.4f}' if isinstance(value, float) else str(value or '')
