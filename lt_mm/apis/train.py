"""Training and evaluating a config, as ``tools/train.py`` and ``tools/test.py`` do."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from lt_mm.datasets.checks import check_annotation_files, explained
from lt_mm.engine.checkpoints import check_strategy, checkpoint_loading
from lt_mm.engine.checks import check_run
from lt_mm.engine.hooks.atomic_checkpoint_hook import AtomicCheckpointHook
from lt_mm.engine.hooks.preemption_hook import PreemptionHook
from lt_mm.engine.launch import (
    add_hooks,
    average_terms_in_log,
    build_runner,
    choose_resumed_checkpoint,
    load_config,
)
from lt_mm.engine.preparation import bare_model, prepare_training


def train(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
) -> Runner:
    """Trains a config and returns its runner.

    Beyond what the stock tool does, the batch size is checked against the sampler before
    the first step, interruptions lose nothing, and checkpoints run no code.

    Args:
        config: Path of the config file.
        work_dir: Folder for logs and checkpoints; by default the config's, else
            ``work_dirs/<name of the config>``.
        resume: A checkpoint to resume from, or 'auto' for the newest one in ``work_dir``
            that can be loaded; without one the run starts as if this were not given.
        amp: Whether to train with automatic mixed precision.
        auto_scale_lr: Whether to scale the learning rate with the batch size.
        cfg_options: Settings to override, keys with dots.
        launcher: One of :data:`lt_mm.engine.process_groups.LAUNCHERS`.
        trust_checkpoint: See :func:`lt_mm.engine.checkpoints.checkpoint_loading`.

    Raises:
        ValueError: If the sampler's groups do not fit into the batch size, or if something is not
            recorded that happens later (:func:`~lt_mm.engine.preparation.prepare_training`).
        DataSetError: If an annotation file cannot be used for training, or for validation.
        RunCheckError: If the run would not be what its config means it to be
            (:func:`~lt_mm.engine.checks.check_run`).
        UntrustedCheckpointError: If a checkpoint to be loaded holds code.
        DamagedCheckpointError: If a checkpoint to be loaded cannot be read.
        RuntimeError: If another process trains in ``work_dir``.
        SystemExit: See :class:`lt_mm.engine.hooks.preemption_hook.PreemptionHook`.
    """
    cfg = load_config(config, work_dir, cfg_options, launcher)
    if amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        _enable_auto_scale_lr(cfg)
    choose_resumed_checkpoint(cfg, resume, trust_checkpoint)
    add_hooks(cfg)
    average_terms_in_log(cfg)
    with checkpoint_loading(trust_checkpoint):
        runner = build_runner(cfg)
        check_strategy(runner)
        with explained(cfg.train_dataloader.dataset):
            loop = runner.train_loop
        _check_validation(runner, cfg)
        prepare_training(runner.model, loop.dataloader, runner.hooks)
        _check(runner, loop.dataloader)
        try:
            runner.train()
        finally:
            for hook in runner.hooks:
                if isinstance(hook, PreemptionHook):
                    hook.restore()
                if isinstance(hook, AtomicCheckpointHook):
                    hook.unlock()
    return runner


def test(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    trust_checkpoint: bool = False,
) -> Mapping[str, float]:
    """Evaluates a checkpoint and returns the metrics; arguments as in :func:`train`."""
    cfg = load_config(config, work_dir, cfg_options, launcher)
    cfg.load_from = checkpoint
    with checkpoint_loading(trust_checkpoint):
        return build_runner(cfg).test()


def _check_validation(runner: Runner, cfg: Config) -> None:
    """Makes sure, before training, that the data of the first validation can be used."""
    if cfg.get('val_dataloader') is None:
        return
    with explained(cfg.val_dataloader.get('dataset', {}), 'val_dataloader'):
        loader = getattr(runner.val_loop, 'dataloader', None)
        if loader is not None:
            check_annotation_files(loader.dataset)


def _check(runner: Runner, loader: DataLoader) -> None:
    """Writes into the log whether the run is what its config means it to be."""
    report = check_run(runner.cfg, bare_model(runner.model), loader)
    report.raise_if_wrong()
    runner.logger.info(f'Check of the config:\n{report}')


def _enable_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            f'auto_scale_lr is {cfg.get("auto_scale_lr")}; expected the batch size that '
            'the learning rate was chosen for: auto_scale_lr=dict(base_batch_size=16)'
        )
    cfg.auto_scale_lr.enable = True
