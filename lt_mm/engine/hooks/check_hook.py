"""The hook that checks a run before its first step, with the stock tools too."""

from typing import Any

from mmengine.hooks import Hook

from lt_mm.engine.checks import check_run
from lt_mm.engine.preparation import bare_model, prepare_training
from lt_mm.registry import HOOKS, register


@register(HOOKS)
class CheckHook(Hook):
    """Makes ready and checks a run before its first step, as ``tools/train.py`` does.

    ``custom_hooks = [dict(type='lt_mm.CheckHook')]``, for those who train with the tools of
    MMDetection and MMPretrain.

    Raises:
        RunCheckError: If the run would not be what its config means it to be.
        ValueError: See :func:`~lt_mm.engine.preparation.prepare_training`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        loader = runner.train_dataloader
        prepare_training(runner.model, loader, runner.hooks)
        report = check_run(runner.cfg, bare_model(runner.model), loader)
        report.raise_if_wrong()
        runner.logger.info(f'Check of the config:\n{report}')
