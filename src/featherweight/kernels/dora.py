"""DoRA on a frozen linear layer as one autograd function.

    forward    v = x Wᵀ + b + s h Bᵀ, h = x Aᵀ      y = c v + (1 − c) b
    backward   gc = c g     gb = s gc B     dA = gbᵀ x     dB = s gcᵀ h     dx = gc W + gb A     dc = Σ g (v − b)

x (n, in)   W (out, in)   A (r, in)   B (out, r)   c (out)   v, y, g (n, out)   h, gb (n, r)

Autograd would keep the base's output, the low-rank output, both times c and their difference to the bias: five
tensors (n, out), in float32 where c is; here v is the only one.
"""

from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core import fused
from featherweight.core.base import Base
from featherweight.core.precision import cast, compute_dtype
from featherweight.kernels.first import first_derivative
from featherweight.kernels.lora import flat, forward, input_gradient, thin
from featherweight.methods.dora import DecomposedLinear


@fused.register(DecomposedLinear, nn.Linear)
def serve(adapter: DecomposedLinear, host: Any, x: Tensor) -> Tensor:
    """DoRA on nn.Linear, found by `core.fused`; a weight that trains and dropout take the plain path."""
    if host.weight.requires_grad or adapter.drops:
        return adapter(Base(host), x)
    c = adapter.gain(adapter.norms(host.weight))
    A, B = adapter.factors()
    return decomposed_linear(x, host.weight, host.bias, A, B, c, adapter.scale)


def decomposed_linear(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, c: Tensor, scale: float
) -> Tensor:
    """c (x Wᵀ + scale · x Aᵀ Bᵀ) + bias for x (..., in), W (out, in), A (r, in), B (out, r), c (out) -> (..., out).

    W must be frozen; the bias need not be. Under autocast it computes in autocast's dtype. First derivatives only: a
    second backward raises RuntimeError.
    """
    if W.requires_grad:
        raise ValueError("decomposed_linear: the weight must be frozen, got one that requires grad")
    return FrozenDecomposed.apply(x, W, bias, A, B, c, scale, compute_dtype(x))


def times(y: Tensor, c: Tensor) -> Tensor:
    """c y by rows of the weight, c in its own precision, rounded once: near 1 a half's c would be 1."""
    return y.mul(c).to(y.dtype)


class FrozenDecomposed(torch.autograd.Function):
    """The module's equations; arguments (x, W, bias, A, B, c, s, compute dtype)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, c: Tensor, scale: float,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        v, h = forward(x.to(dtype), W.to(dtype), cast(bias, dtype), A.to(dtype), B.to(dtype), scale)
        ctx.save_for_backward(x if A.requires_grad else None, W, A, B, c, h, v if c.requires_grad else None, bias)
        ctx.scale, ctx.shape, ctx.x_dtype = scale, x.shape, x.dtype
        y = times(v, c)
        return y if bias is None else y.add_(((1 - c) * bias).to(dtype))

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, c, h, v, bias = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B, need_c = ctx.needs_input_grad[:6]
        g = flat(g)
        dx = dA = dB = dc = dbias = None
        total = g.sum(0, dtype=c.dtype) if bias is not None else None
        if need_c:
            dc = g.mul(flat(v)).sum(0, dtype=c.dtype)
            dc = dc if total is None else dc.sub_(total * bias)
        if need_bias and total is not None:
            dbias = total.to(bias.dtype)
        gc = times(g, c)
        gb = gc.mm(thin(B, g.dtype)).mul_(ctx.scale)
        if need_A:
            dA = gb.t().mm(flat(x.to(g.dtype))).to(A.dtype)
        if need_B:
            dB = h.t().mm(gc).mul_(ctx.scale).t().to(B.dtype)
        if need_x:
            dx = input_gradient(gc, W.to(g.dtype), gb, A.to(g.dtype), None).view(ctx.shape).to(ctx.x_dtype)
        return dx, None, dbias, dA, dB, dc, None, None
