"""Which runners write checkpoints that can be resumed as this package does it."""

from typing import Any

from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.hooks import EMAHook

_WHOLE = (SingleDeviceStrategy.save_checkpoint, DDPStrategy.save_checkpoint)


def check_strategy(runner: Any) -> None:
    """Makes sure that a runner writes a checkpoint in one file, through MMEngine's ``fileio``.

    Args:
        runner: A ``Runner``, or a ``FlexibleRunner`` with any strategy.

    Raises:
        ValueError: If its strategy writes in another way, or if it cannot load what it is to load.
    """
    strategy = getattr(runner, 'strategy', None)
    if strategy is None:
        return
    if type(strategy).save_checkpoint not in _WHOLE:
        raise ValueError(
            f"strategy=dict(type='{type(strategy).__name__}') writes its checkpoints in parts, or "
            'past the storage backends of MMEngine, so that they are not safe against being killed '
            'and a run cannot go on from the middle of an epoch; expected strategy=dict(type='
            "'SingleDeviceStrategy') or dict(type='DDPStrategy'). To train with this strategy, use "
            'the stock tools and hooks, default_hooks=dict(checkpoint=dict(type='
            "'CheckpointHook')), without lt_mm.PreemptionHook, lt_mm.ResumeHook and "
            'lt_mm.MemoryHook in custom_hooks'
        )
    if runner._load_from is not None and any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise ValueError(
            f'{runner._load_from} is to be loaded by a FlexibleRunner with an EMAHook, which in '
            'MMEngine fails, since the averaged weights are made after the checkpoint is loaded; '
            "expected runner_type='Runner', or no EMAHook in custom_hooks"
        )
