"""How a run is launched, trained, interrupted and resumed."""

from lt_mm.engine import hooks, loops

__all__ = ['hooks', 'loops']
