"""Inverted dropout on a CPU with a mask cut from integer noise; two bytes per element are kept for backward.

y = x m / q      m ~ Bernoulli(q), q = 1 - p to within 2⁻¹⁷
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.kernels.first import first_derivative
from featherweight.kernels.noise import keep, keep_mask, keep_probability


def drop(x: Tensor, p: float) -> Tensor:
    """x with each element zeroed with probability p and the others divided by 1 - p. Raises ValueError for p outside
    [0, 1)."""
    return Drop.apply(x, keep_mask(x.shape, p, x.device), 1 / keep_probability(p))


class Drop(torch.autograd.Function):
    """The module's equation; arguments (x, m, 1/q)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.gain = gain
        return keep(x, mask).mul_(gain)

    @staticmethod
    @first_derivative
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return keep(dy, mask).mul_(ctx.gain), None, None


def fits(module: nn.Module, cls: type[nn.Module]) -> bool:
    """nn.Dropout itself, out of place, that ever drops."""
    return cls is nn.Dropout and isinstance(module, nn.Dropout) and not module.inplace and 0 < module.p < 1


def forward_of(cls: type[nn.Module]) -> Callable[..., Tensor]:
    """The forward of a fused nn.Dropout; other devices have a fast generator and keep torch's own."""

    def forward(self: Any, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout's own name
        if self.training and input.device.type == "cpu" and not torch.compiler.is_compiling():
            return drop(input, self.p)
        return cls.forward(self, input)

    return forward
