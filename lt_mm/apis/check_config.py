"""Whether a config trains what it means to: ``tools/check_config.py``."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from lt_mm.datasets.checks import explained
from lt_mm.engine.checks import Report, check_inherited_pipelines, check_overrides, check_run
from lt_mm.engine.launch import enter_scope, load_config
from lt_mm.engine.preparation import prepare_training
from lt_mm.registry import HOOKS, MODELS

# Arguments of the hooks that change the pipeline during training.
_SWITCHES = ('switch_pipeline', 'schedule')


def check_config(config: str, cfg_options: Mapping[str, Any] | None = None) -> Report:
    """Builds the model and the training data of a config, and looks at both.

    Nothing is trained or written. What cannot be built is a finding, and files that are not on
    this machine are not counted as wrong.

    Args:
        config: Path of the config file.
        cfg_options: Settings to override, keys with dots.
    """
    report = Report()
    with report.reporting('config'):
        cfg = load_config(config, cfg_options=cfg_options)
        enter_scope(cfg)
        _check(cfg, report)
    return report


def _check(cfg: Config, report: Report) -> None:
    model = loader = None
    with report.reporting('model'):
        model = _built_model(cfg)
    with report.reporting('data'), explained(cfg.train_dataloader.dataset):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    if model is None:
        return
    if loader is None:
        check_overrides(model, None, report)
        check_inherited_pipelines(cfg, report)
        return
    with report.reporting('preparation'):
        hooks = [HOOKS.build(each) for each in cfg.get('custom_hooks') or () if _switches(each)]
        prepare_training(model, loader, hooks)
    report.findings += check_run(cfg, model, loader).findings


def _built_model(cfg: Config) -> Any:
    config = cfg.model.copy()
    if cfg.get('data_preprocessor') is not None:  # as the Runner does
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(config)


def _switches(hook: Any) -> bool:
    return isinstance(hook, dict) and any(key in hook for key in _SWITCHES)
