"""From a config and a command line to a runner.

The configs run with the stock tools as well. The tools of this repository add that
launches choose a port of their own and use gloo where there is no GPU, and that
interruptions lose nothing.
"""

import itertools
import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from lt_mm.engine.checkpoints import check_resumable, find_resumable
from lt_mm.engine.process_groups import prepare_process_group

_RUNNERS = itertools.count(1)


def load_config(
    config: str,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Reads a config file and applies the command line to it.

    Args:
        config: Path of the config file.
        work_dir: Folder for logs and checkpoints; by default the config's, else
            ``work_dirs/<name of the config>``.
        cfg_options: Settings to override, keys with dots.
        launcher: One of :data:`lt_mm.engine.process_groups.LAUNCHERS`.
    """
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
    """Prepares the launch (:mod:`lt_mm.engine.process_groups`) and builds the runner.

    MMEngine finds the logger, the message hub and the visualizer of a run by the name of
    its config and the second of its start. The names of later runners of a process get a
    number, or a runner that starts in the same second as the one before it would write its
    losses and metrics into that one's folder.
    """
    prepare_process_group(cfg)
    number = next(_RUNNERS)
    if number > 1:
        name = cfg.get('experiment_name') or osp.splitext(osp.basename(cfg.filename or 'config'))[0]
        cfg = cfg.copy()
        cfg.experiment_name = f'{name}_{number}'
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def average_terms_in_log(cfg: Config) -> None:
    """Averages what heads log beside the losses (``lt_*``) over the interval, as the losses.

    MMEngine logs the last step's value of everything that ``mean_pattern`` does not name.
    """
    log_processor = cfg.setdefault('log_processor', {})
    log_processor.setdefault('mean_pattern', r'.*(loss|time|data_time|grad_norm|lt_).*')


def choose_resumed_checkpoint(cfg: Config, resume: str | None, trusted: bool = False) -> None:
    """Writes into the config which checkpoint a run resumes from, if any.

    Args:
        cfg: Config of the run; modified.
        resume: A checkpoint, or 'auto' for the newest one in the work directory that can be
            loaded. If there is none, the run starts from the weights that the config names,
            so that a job can always be started with ``--resume``.
        trusted: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Raises:
        ValueError: If the checkpoint holds weights, but not the state of a run.
        UntrustedCheckpointError: If the checkpoint holds code.
        DamagedCheckpointError: If the checkpoint cannot be read.
    """
    is_auto = resume == 'auto' if resume else cfg.get('resume') and cfg.get('load_from') is None
    if is_auto:
        found = find_resumable(cfg.work_dir, trusted)
        cfg.resume = found is not None
        if found is not None:
            cfg.load_from = found
        return
    if resume:
        cfg.resume, cfg.load_from = True, resume
    if cfg.get('resume') and osp.isfile(cfg.load_from):
        check_resumable(cfg.load_from, trusted)


def add_hooks(cfg: Config) -> None:
    """Adds the hooks that make interruptions harmless, unless the config has them."""
    hooks = cfg.get('custom_hooks') or []
    names = {str(hook.get('type')).split('.')[-1] for hook in hooks if isinstance(hook, dict)}
    own = ('PreemptionHook', 'ResumeHook', 'MemoryHook')
    added = [name for name in own if name not in names]
    cfg.custom_hooks = [*hooks, *(dict(type=f'lt_mm.{name}') for name in added)]
    # MMEngine's own default comes first.
    default_hooks = {
        'checkpoint': dict(type='CheckpointHook', interval=1),
        **(cfg.get('default_hooks') or {}),
    }
    checkpoint = default_hooks['checkpoint']
    if checkpoint and checkpoint.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        checkpoint['type'] = 'lt_mm.AtomicCheckpointHook'
    cfg.default_hooks = default_hooks
