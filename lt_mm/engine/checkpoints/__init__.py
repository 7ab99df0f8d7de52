"""Checkpoints: written whole, chosen whole, and loaded without running code from them."""

from lt_mm.engine.checkpoints.atomic_files import ATOMIC, AtomicBackend
from lt_mm.engine.checkpoints.finite_weights import nonfinite_weights
from lt_mm.engine.checkpoints.loading import checkpoint_loading, load_weights_only
from lt_mm.engine.checkpoints.locking import lock_folder, unlock_folder
from lt_mm.engine.checkpoints.refusals import (
    DamagedCheckpointError,
    UntrustedCheckpointError,
    is_complete,
)
from lt_mm.engine.checkpoints.resuming import (
    check_resumable,
    find_resumable,
    read_last_checkpoint,
    write_last_checkpoint,
)
from lt_mm.engine.checkpoints.strategies import check_strategy

__all__ = [
    'ATOMIC',
    'AtomicBackend',
    'DamagedCheckpointError',
    'UntrustedCheckpointError',
    'check_resumable',
    'check_strategy',
    'checkpoint_loading',
    'find_resumable',
    'is_complete',
    'load_weights_only',
    'lock_folder',
    'nonfinite_weights',
    'read_last_checkpoint',
    'unlock_folder',
    'write_last_checkpoint',
]
