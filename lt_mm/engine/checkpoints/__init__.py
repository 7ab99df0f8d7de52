"""Checkpoints: written whole, chosen whole, and loaded without running code from them."""

from lt_mm.engine.checkpoints.atomic_files import ATOMIC, AtomicBackend
from lt_mm.engine.checkpoints.loading import (
    UntrustedCheckpointError,
    checkpoint_loading,
    load_weights_only,
)
from lt_mm.engine.checkpoints.resuming import (
    find_resumable,
    is_complete,
    read_last_checkpoint,
    write_last_checkpoint,
)

__all__ = [
    'ATOMIC',
    'AtomicBackend',
    'UntrustedCheckpointError',
    'checkpoint_loading',
    'find_resumable',
    'is_complete',
    'load_weights_only',
    'read_last_checkpoint',
    'write_last_checkpoint',
]
