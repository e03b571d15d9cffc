"""Fake quantization: values are rounded to a number format forward, and the gradient goes straight through.

    x̂ = decode(encode(x))          dL/dx = dL/dx̂ inside the range, 0 where it was clipped

x̂ comes from the codec itself, so that it is what the packed tensor will decode to, bit for bit. A scheme without
clipping has nothing outside: its range is the largest value.
Source: Bengio et al. 2013, arXiv:1308.3432 (straight-through); Jacob et al. 2017, arXiv:1712.05877.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from featherweight.quant import ops
from featherweight.quant.scheme import Scheme


def fake_quantize(x: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
    """x of any shape -> what its codes decode to, in `dtype`."""
    return StraightThrough.apply(x, scheme, dtype)


class StraightThrough(torch.autograd.Function):
    """The module's equations; arguments (x, scheme, dtype)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scheme: Scheme, dtype: torch.dtype) -> Tensor:
        rounded = scheme.decode(scheme.encode(x), tuple(x.shape), dtype)
        ctx.dtype = x.dtype
        ctx.save_for_backward(None if getattr(scheme, "clip", None) is None else inside(x, rounded, scheme))
        return rounded

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (within,) = ctx.saved_tensors
        g = g.to(ctx.dtype)
        return g if within is None else g * within, None, None


def inside(x: Tensor, rounded: Tensor, scheme: Any) -> Tensor:
    """Which values lie in the clipped range: those no farther from their level than levels lie from each other."""
    return (x - rounded).abs() <= replace(scheme, clip=None).bound(rounded)


class RoundedRows(torch.autograd.Function):
    """x (..., k) with every row on its own absmax grid of `bits` bits: dynamic activations; straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        if bits == 8:  # the very codes that integer products run on
            codes, step = ops.quantize_rows(x.reshape(-1, x.shape[-1]))
            return (codes * step[:, None]).to(x.dtype).view(x.shape)
        wide, high = x.float(), 2 ** (bits - 1) - 1
        step = wide.abs().amax(-1, keepdim=True) / high
        return ((wide / torch.where(step == 0, 1.0, step)).round() * step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None
