"""Whether weights are numbers, so that training can go on with them."""

from typing import Any

import torch
from mmengine.model import is_model_wrapper


def nonfinite_weights(model: Any) -> list[str]:
    """The names of the parameters and running statistics in which something is NaN or infinite.

    Other buffers may hold infinities on purpose, such as masks of attention.

    Args:
        model: The model, wrapped for several ranks or not.
    """
    module = model.module if is_model_wrapper(model) else model
    weights = dict(module.named_parameters())
    weights.update(
        (name, buffer)
        for name, buffer in module.named_buffers()
        if name.rpartition('.')[2].startswith('running_')
    )
    names = [name for name, weight in weights.items() if weight.is_floating_point()]
    if not names:
        return []
    device = weights[names[0]].device
    # The device is asked once, not for each of them.
    finite = torch.stack([weights[name].detach().isfinite().all().to(device) for name in names])
    return [name for name, is_finite in zip(names, finite.tolist()) if not is_finite]
