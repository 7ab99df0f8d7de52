"""Hooks that a config or ``tools/train.py`` adds to the runner."""

from lt_mm.engine.hooks.atomic_checkpoint_hook import AtomicCheckpointHook
from lt_mm.engine.hooks.check_hook import CheckHook
from lt_mm.engine.hooks.memory_hook import MemoryHook
from lt_mm.engine.hooks.nonfinite_hook import NonFiniteHook
from lt_mm.engine.hooks.pair_visualization_hook import PairVisualizationHook
from lt_mm.engine.hooks.preemption_hook import PreemptionHook
from lt_mm.engine.hooks.resume_hook import ResumeHook
from lt_mm.engine.hooks.weak_target_hook import WeakTargetHook

__all__ = [
    'AtomicCheckpointHook',
    'CheckHook',
    'MemoryHook',
    'NonFiniteHook',
    'PairVisualizationHook',
    'PreemptionHook',
    'ResumeHook',
    'WeakTargetHook',
]
