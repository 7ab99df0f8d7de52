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
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS, DefaultScope, init_default_scope
from mmengine.runner import FlexibleRunner, Runner
from mmengine.visualization import Visualizer

from lt_mm.engine.checkpoints import check_resumable, find_resumable
from lt_mm.engine.hooks import MemoryHook, NonFiniteHook, PreemptionHook, ResumeHook
from lt_mm.engine.process_groups import prepare_process_group
from lt_mm.registry import HOOKS, MODELS, builds, class_of

_RUNNERS = itertools.count(1)
_FRAMEWORKS = ('mmdet', 'mmpretrain')
# Longer texts of configs are not formatted: a usual one of COCO has 7,000 characters.
_FORMATTED_CHARACTERS = 20_000


def load_config(
    config: str,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Reads a config file and applies the command line to it.

    MMEngine formats the text of a config for every checkpoint anew, which takes 15 s where
    ``indices`` is a list of 45,000 images. The text of a config that is that long is not formatted.

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
    if len(repr(cfg)) > _FORMATTED_CHARACTERS:
        # `fromfile` has an argument for it, which MMEngine 0.10 does not pass on.
        object.__setattr__(cfg, '_format_python_code', False)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(config))[0])
    return cfg


def build_runner(cfg: Config) -> Any:
    """Prepares the launch (:mod:`lt_mm.engine.process_groups`) and builds the runner.

    MMEngine finds the logger, the message hub and the visualizer of a run by their names: those of
    its config and the second of its start, and a name in the config, as MMDetection's visualizer
    has one. Later runners of a process get names with a number, or they would write into the
    folder of an earlier one. Where a config has no default scope, that of an earlier runner does
    not hold for it.

    Args:
        cfg: Config of the run.

    Returns:
        A ``Runner``, or what ``runner_type`` names. Its model is built.
    """
    prepare_process_group(cfg)
    cfg = cfg.copy()
    number = next(_RUNNERS)
    if number > 1:
        name = cfg.get('experiment_name') or osp.splitext(osp.basename(cfg.filename or 'config'))[0]
        cfg.experiment_name = f'{name}_{number}'
    name = (cfg.get('visualizer') or {}).get('name')
    if name is not None and (number > 1 or Visualizer.check_instance_created(name)):
        cfg.visualizer = dict(cfg.visualizer, name=f'{name}_{number}')
    if cfg.get('default_scope', '') is None and DefaultScope.get_current_instance() is not None:
        cfg.default_scope = _scope_of_model(cfg)
    runner = RUNNERS.build(cfg) if cfg.get('runner_type') else Runner.from_cfg(cfg)
    if isinstance(runner, FlexibleRunner):  # it builds the model when the training begins
        runner.model = runner.strategy.build_model(runner.model)
    return runner


def enter_scope(cfg: Config) -> None:
    """Has bare names looked up in the scope of a config, for what is built without a runner."""
    scope = cfg.get('default_scope', 'mmdet') or _scope_of_model(cfg)
    if scope is not None:
        init_default_scope(scope)


def _scope_of_model(cfg: Config) -> str | None:
    """The framework that a model derives from, which a config without a scope names as a class."""
    found = class_of((cfg.get('model') or {}).get('type'), MODELS, 'mmengine')
    modules = (cls.__module__.split('.')[0] for cls in getattr(found, '__mro__', ()))
    return next((name for name in modules if name in _FRAMEWORKS), None)


def average_terms_in_log(cfg: Config) -> None:
    """Averages what heads log beside the losses (``lt_*``) over the interval, as the losses.

    MMEngine logs the last step's value of everything that ``mean_pattern`` does not name.
    """
    pattern = dict(mean_pattern=r'.*(loss|time|data_time|grad_norm|lt_).*')
    cfg.log_processor = {**pattern, **(cfg.get('log_processor') or {})}


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
    """Adds the hooks that make interruptions and NaN harmless, unless the config has them.

    ``AtomicCheckpointHook`` takes the place of the stock ``CheckpointHook``.
    """
    scope = cfg.get('default_scope')
    # MMEngine's own default comes first.
    default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    default_hooks.update(cfg.get('default_hooks') or {})
    custom_hooks = list(cfg.get('custom_hooks') or [])
    present = [*default_hooks.values(), *custom_hooks]
    for hook in present:
        kind = hook.get('type') if isinstance(hook, dict) else None
        if kind is not None and class_of(kind, HOOKS, scope) is CheckpointHook:
            hook['type'] = 'lt_mm.AtomicCheckpointHook'
    for cls in (PreemptionHook, ResumeHook, MemoryHook, NonFiniteHook):
        if not any(builds(hook, cls, HOOKS, scope) for hook in present):
            custom_hooks.append(dict(type=f'lt_mm.{cls.__name__}'))
    cfg.default_hooks, cfg.custom_hooks = default_hooks, custom_hooks
