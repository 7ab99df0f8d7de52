"""Steps in micro-batches beside stock steps."""

import copy

import torch
from mmengine.optim import OptimWrapper

from lt_mm.engine.loops.micro_batches import joint_step


class KeepGradients(OptimWrapper):
    """Leaves weights and gradients as they are after the backward pass."""

    def step(self, **kwargs):
        pass

    def zero_grad(self, **kwargs):
        pass


def gradients_of(model, batch, count):
    """Gradients, log and buffers after a step; after the stock step if there is no count."""
    model, batch = copy.deepcopy(model), copy.deepcopy(batch)
    optim_wrapper = KeepGradients(torch.optim.SGD(model.parameters(), lr=0.1))
    if count is None:
        log = model.train_step(batch, optim_wrapper)
    else:
        log = joint_step(model, batch, optim_wrapper, count)
    found = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return found, log, dict(model.named_buffers())


def assert_joint(model, batch, counts, tolerance=1e-9):
    """Gradients, the log and buffers are those of the step on the joint batch.

    Returns:
        The log.
    """
    expected, log, buffers = gradients_of(model, batch, None)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for count in counts:
        found, own_log, own_buffers = gradients_of(model, batch, count)
        assert found.keys() == expected.keys() and own_log.keys() == log.keys()
        for name, gradient in expected.items():
            difference = float((found[name] - gradient).abs().max()) / scale
            assert difference <= tolerance, (name, difference)
        for mine, theirs in ((own_log, log), (own_buffers, buffers)):
            for name, value in theirs.items():
                torch.testing.assert_close(
                    mine[name], value, rtol=10 * tolerance, atol=tolerance, msg=name
                )
    return log
