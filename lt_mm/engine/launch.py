"""What ``tools/train.py`` and ``tools/test.py`` call: the stock tools' habits.

The configs run with the stock tools as well. These add: the batch size is checked
against the sampler before the first step, launches choose a port of their own and use
gloo where there is no card, interruptions lose nothing, and checkpoints run no code.
"""

import itertools
import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from lt_mm.engine.checkpoints import find_resumable
from lt_mm.engine.process_groups import prepare_process_group

_RUNNERS = itertools.count(1)


def load_config(
    config: str,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
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
    """Builds the runner; its launch is made ready before (:mod:`process_groups`).

    MMEngine finds the logger, the message hub and the visualizer of a run by the name of
    its config and the second of its start. A later runner of the same process has its
    number in its name too, or one started in the same second would write its losses and
    metrics into the folder of the one before it.
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


def choose_resumed_checkpoint(cfg: Config, resume: str | None) -> None:
    """Puts the checkpoint to go on from into the config."""
    if resume is not None and resume != 'auto':
        cfg.resume, cfg.load_from = True, resume
    elif resume == 'auto' or (cfg.get('resume') and cfg.get('load_from') is None):
        found = find_resumable(cfg.work_dir)
        # Without one, a job that is always started with --resume begins here, with
        # the weights that the config names.
        cfg.resume = found is not None
        if found is not None:
            cfg.load_from = found


def add_hooks(cfg: Config) -> None:
    """Makes interruptions harmless; what the config says of these hooks stays."""
    hooks = cfg.get('custom_hooks') or []
    names = {str(hook.get('type')).split('.')[-1] for hook in hooks if isinstance(hook, dict)}
    cfg.custom_hooks = [
        *hooks,
        *(
            dict(type=f'lt_mm.{name}')
            for name in ('PreemptionHook', 'ResumeHook')
            if name not in names
        ),
    ]
    # The first is MMEngine's own default.
    default_hooks = {
        'checkpoint': dict(type='CheckpointHook', interval=1),
        **(cfg.get('default_hooks') or {}),
    }
    checkpoint = default_hooks['checkpoint']
    if checkpoint and checkpoint.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
        checkpoint['type'] = 'lt_mm.AtomicCheckpointHook'
    cfg.default_hooks = default_hooks
