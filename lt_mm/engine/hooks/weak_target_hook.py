"""The hook that makes targets of weak copies cheap, and lets the averaged model give them."""

from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper

from lt_mm.models.weak_copies import comparing_heads_of, set_weak_copies_apart
from lt_mm.registry import HOOKS, register


@register(HOOKS)
class WeakTargetHook(Hook):
    """Takes weak copies of unlabelled images through the model without a graph.

    ``custom_hooks = [dict(type='lt_mm.WeakTargetHook')]``, beside ``weak_target=dict(...)`` in
    the wrapped head. Without the hook the targets are the same, and a step costs more. With
    ``weak_target=dict(teacher=True)`` it also lets the averaged model of MMEngine's ``EMAHook``
    predict for these copies, in eval mode; then it is needed.

    Backbones with batch norm in training mode take their statistics from the weak copies and from
    the other images apart.

    Raises:
        ValueError: If no head has ``weak_target``, or a teacher is wanted and there is no
            ``EMAHook``.
        UnsupportedHeadError: If the predictions of a head cannot be those of a teacher.
    """

    # After EMAHook has made its model.
    priority = 'LOWEST'

    def before_train(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        targets = [head.lt_options.weak_target for head in comparing_heads_of(model).values()]
        teacher = None
        if any(target is not None and target.teacher for target in targets):
            teacher = self._teacher(runner)
        set_weak_copies_apart(model, teacher)

    def _teacher(self, runner: Any) -> Any:
        averaged = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
        if not averaged:
            raise ValueError(
                'weak_target=dict(teacher=True) in the head, and no EMAHook that averages a model; '
                "expected dict(type='EMAHook', momentum=0.001) in custom_hooks, or teacher=False"
            )
        return averaged[0].module.eval()
