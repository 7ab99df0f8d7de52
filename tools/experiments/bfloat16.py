"""Training in bfloat16 on the CPU, for studies that would take too long in float32.

MMEngine's ``AmpOptimWrapper`` does so on accelerators alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module(force=True)  # this file may run twice in a process
class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass under autocast, with the memory format in which that is fastest."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """As of the stock wrapper.

        Args:
            model: Its weights, float32, change their memory format in place at the first step.
        """
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs lack it
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
