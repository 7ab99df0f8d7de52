"""What the config's own evaluation says, without and with averaging over augmentations."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models import AverageClsScoreTTA

from lt_mm.apis.replica_configs import on_replicas
from lt_mm.datasets.checks import innermost_configs
from lt_mm.engine.launch import build_runner

_TRANSFORMS = 'mmdet.datasets.transforms'
_NO_MASK_TTA = 'not evaluated: the stock DetTTAModel merges no masks'


def evaluate_classifier(
    cfg: Config, runner: Runner, samples: list[Any], choice: Mapping[str, Any]
) -> dict[str, Any]:
    """Stock metrics of images as they are, of copies, and of their mean predictions.

    Args:
        cfg: See :func:`lt_mm.apis.replica_configs.validation_config`.
        runner: What predicted the copies.
        samples: The predictions for the copies.
        choice: Which images; see :func:`lt_mm.apis.replica_configs.on_replicas`.

    Returns:
        The metrics by setting; empty where the config has no evaluator.
    """
    if not cfg.test_evaluator:
        return {}
    plain = on_replicas(cfg, cfg.val_dataloader.dataset, 1, choice, cfg.test_evaluator)
    copies: dict[int, list[Any]] = {}
    for sample in samples:
        copies.setdefault(sample.source_id, []).append(sample)
    merged = AverageClsScoreTTA(module=runner.model).merge_preds(list(copies.values()))
    return dict(
        unaugmented=build_runner(plain).test(),
        single_replicas=_evaluate(cfg, runner, samples),
        averaged_replicas=_evaluate(cfg, runner, merged),
    )


def _evaluate(cfg: Config, runner: Runner, samples: list[Any]) -> dict[str, float]:
    evaluator = runner.build_evaluator(copy.deepcopy(cfg.test_evaluator))
    evaluator.dataset_meta = runner.test_loop.dataloader.dataset.metainfo
    return evaluator.offline_evaluate(samples)


def evaluate_detector(cfg: Config, runner: Runner) -> dict[str, Any]:
    """Stock metrics without and with the stock test-time augmentation.

    Args:
        cfg: See :func:`lt_mm.apis.replica_configs.validation_config`.
        runner: A runner of the same model.

    Returns:
        The metrics by setting; empty where the config has no evaluator.
    """
    if not cfg.test_evaluator:
        return {}
    plain = build_runner(copy.deepcopy(cfg)).test()
    if getattr(runner.model, 'with_mask', False):
        return dict(unaugmented=plain, tta=_NO_MASK_TTA)
    return dict(unaugmented=plain, tta=build_runner(_with_tta(cfg)).test())


def _with_tta(cfg: Config) -> Config:
    """The config with its own test-time augmentation, or the stock tools' default."""
    cfg = copy.deepcopy(cfg)
    model = cfg.get('tta_model') or dict(
        type='mmdet.models.test_time_augs.DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    )
    # Paths: a pure Python config has no scope for bare names, and JSON holds no classes.
    flips = [dict(type=f'{_TRANSFORMS}.RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    packing = [dict(type=f'{_TRANSFORMS}.PackDetInputs')]
    both = dict(type='mmcv.transforms.TestTimeAug', transforms=[flips, packing])
    for dataset in innermost_configs(cfg.test_dataloader.dataset):
        dataset.pipeline = cfg.get('tta_pipeline') or [*dataset.pipeline[:-1], both]
    cfg.model = dict(model, module=cfg.model)
    return cfg
