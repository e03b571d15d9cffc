"""A linear layer over packed weights as one autograd function that keeps codes, never a dense weight.

    forward    y = x Ŵᵀ + b          backward    dx = g Ŵ, db = Σ g          Ŵ = decode(packed), made again in each

A scheme that computes on its codes has its own `product` and `input_gradient`; these are the decoding ones.
The function is given tensors and a stateless scheme, not the module, so that a compiled graph has constants only.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.core.precision import cast, compute_dtype

if TYPE_CHECKING:
    from featherweight.quant.scheme import Scheme


def decoded_linear(
    x: Tensor, packed: Mapping[str, Tensor], scheme: "Scheme", shape: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """x (..., in) through Ŵ (out, in), in x's dtype, or autocast's."""
    dtype = compute_dtype(x)
    if not (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))):
        return scheme.product(x.to(dtype), packed, shape, cast(bias, dtype))
    return DecodedLinear.apply(x, bias, scheme, shape, dtype, tuple(packed), *packed.values())


class DecodedLinear(torch.autograd.Function):
    """The module's equations; arguments (x, bias, scheme, shape, compute dtype, names of the packed tensors, those)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, scheme: "Scheme", shape: tuple[int, int], dtype: torch.dtype,
        names: tuple[str, ...], *packed: Tensor,
    ) -> Tensor:  # fmt: skip
        held = dict(zip(names, packed, strict=True))
        ctx.save_for_backward(*packed)
        ctx.scheme, ctx.shape, ctx.dtype, ctx.names, ctx.x_dtype = scheme, shape, dtype, names, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return scheme.product(x.to(dtype), held, shape, cast(bias, dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dx = db = None
        if ctx.needs_input_grad[0]:
            held = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
            dx = ctx.scheme.input_gradient(g.to(ctx.dtype), held, ctx.shape).to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            db = g.reshape(-1, g.shape[-1]).sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, db, None, None, None, None, *(None for _ in ctx.names)
