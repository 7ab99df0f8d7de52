"""Runs a function on several ranks, real processes with a gloo process group."""

import io
import multiprocessing
import queue
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

# A server imports the heavy modules once and forks every rank from that state.
_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['tests.models.heads.head_data'])


def run_ranks(function: Callable, world_size: int, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Returns what ``function(rank, *args)`` returns on each rank.

    Args:
        function: A function of a module's top level; its result must be picklable.
        timeout: Seconds after which hanging ranks are killed.

    Raises:
        AssertionError: If a rank fails or does not finish in time; says which.
    """
    results = _CONTEXT.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _CONTEXT.Process(
                target=_on_rank,
                args=(function, rank, world_size, args, results, str(Path(folder, 'store'))),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        try:
            return _collected(results, ranks, time.monotonic() + timeout)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _collected(results: Any, ranks: list[Any], deadline: float) -> list[Any]:
    values, errors = {}, {}
    while len(values) + len(errors) < len(ranks):
        try:
            rank, value, error = results.get(timeout=1)
        except queue.Empty:
            errors.update(_without_result(ranks, values, errors, deadline))
            continue
        if error is None:
            values[rank] = torch.load(io.BytesIO(value), weights_only=False)
        else:
            errors[rank] = error
    # All errors are shown: where one rank fails, the others lose their connection to it.
    assert not errors, '\n'.join(f'rank {rank}: {error}' for rank, error in errors.items())
    return [values[rank] for rank in range(len(ranks))]


def _without_result(ranks: list[Any], values: dict, errors: dict, deadline: float) -> dict:
    """Ranks that died without an error message, and after the deadline those that hang."""
    found = {}
    for rank, process in enumerate(ranks):
        if rank in values or rank in errors:
            continue
        if process.exitcode not in (None, 0):
            found[rank] = f'died with exit code {process.exitcode}'
        elif time.monotonic() > deadline:
            found[rank] = 'hangs'
    return found


def _on_rank(
    function: Callable, rank: int, world_size: int, args: tuple, results: Any, store: str
) -> None:
    torch.set_num_threads(1)
    torch_dist.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=world_size
    )
    try:
        value = io.BytesIO()  # not tensors: those would be gone with this process
        torch.save(function(rank, *args), value)
        results.put((rank, value.getvalue(), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    torch_dist.destroy_process_group()
