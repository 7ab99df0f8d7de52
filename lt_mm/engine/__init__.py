"""How a run goes: hooks, loops, launches, checkpoints."""

from lt_mm.engine import hooks, loops

__all__ = ['hooks', 'loops']
