"""What ``tools/train.py`` and ``tools/test.py`` call: the stock tools' habits.

The configs run with the stock tools as well. These add two things: the batch size is
checked against the sampler before the first step, and launches choose a port of their
own and use gloo where there is no card.
"""
import os.path as osp
from typing import Any, Mapping, Optional

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from lt_mm.adapters.process_groups import LAUNCHERS, prepare_process_group
from lt_mm.adapters.sampler import check_train_dataloader

__all__ = ['LAUNCHERS', 'build_runner', 'load_config', 'test', 'train']


def train(config: str, work_dir: Optional[str] = None, resume: Optional[str] = None,
          amp: bool = False, auto_scale_lr: bool = False,
          cfg_options: Optional[Mapping[str, Any]] = None,
          launcher: str = 'none') -> Runner:
    """Trains a config and returns its runner.

    Args:
        config: Path of the config file.
        work_dir: Folder for logs and checkpoints; by default the config's, else
            ``work_dirs/<name of the config>``.
        resume: A checkpoint to go on from, or 'auto' for the latest in ``work_dir``.
        amp: Whether to train with automatic mixed precision.
        auto_scale_lr: Whether to scale the learning rate with the batch size.
        cfg_options: Settings to override, keys with dots.
        launcher: One of ``LAUNCHERS``.

    Raises:
        ValueError: If the sampler's groups do not fit into the batch size.
    """
    cfg = load_config(config, work_dir, cfg_options, launcher)
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        _enable_auto_scale_lr(cfg)
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    runner = build_runner(cfg)
    check_train_dataloader(runner.train_loop.dataloader)
    runner.train()
    return runner


def test(config: str, checkpoint: str, work_dir: Optional[str] = None,
         cfg_options: Optional[Mapping[str, Any]] = None,
         launcher: str = 'none') -> Mapping[str, float]:
    """Evaluates a checkpoint and returns the metrics; arguments as in :func:`train`."""
    cfg = load_config(config, work_dir, cfg_options, launcher)
    cfg.load_from = checkpoint
    return build_runner(cfg).test()


def load_config(config: str, work_dir: Optional[str] = None,
                cfg_options: Optional[Mapping[str, Any]] = None,
                launcher: str = 'none') -> Config:
    """Reads a config file and applies the command line to it."""
    cfg = Config.fromfile(config)
    cfg.launcher = launcher
    if cfg_options:
        cfg.merge_from_dict(dict(cfg_options))
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(config))[0])
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Builds the runner; its launch is made ready before (:mod:`process_groups`)."""
    prepare_process_group(cfg)
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def _enable_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ValueError(
            f'auto_scale_lr is {cfg.get("auto_scale_lr")}; expected the batch size that '
            'the learning rate was chosen for: auto_scale_lr=dict(base_batch_size=16)')
    cfg.auto_scale_lr.enable = True
