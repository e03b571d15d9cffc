"""LoRA on a linear layer of codes as one autograd function: QLoRA's equation 5, and its gradients.

    forward    y = x Ŵᵀ + b + c (m∘x) Aᵀ Bᵀ       c = s / keep probability; m, the dropout mask, is 1 without dropout
    backward   gb = c g B      dA = gbᵀ (m∘x)      dB = c gᵀ h, h = (m∘x) Aᵀ      dx = g Ŵ + m∘(gb A)

x (n, in)   Ŵ (out, in), decode(packed)   A (r, in)   B (out, r)   m (n, in) int16   h, gb (n, r)

x Ŵᵀ and g Ŵ are the scheme's own `product` and `input_gradient`: a scheme that computes on its codes does so here too,
one that decodes does it in each, into a buffer that stays. Kept for backward are the codes, x, A and B by reference, m
and h. A scheme with a `linear` of its own is left to the plain path.
Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.core import fused
from featherweight.core.base import Base
from featherweight.core.precision import cast, compute_dtype
from featherweight.kernels.first import first_derivative
from featherweight.kernels.lora import flat, gradient_of_A, thin, with_low_rank
from featherweight.kernels.noise import keep, keep_mask, keep_probability
from featherweight.methods.lowrank import LowRank
from featherweight.methods.shifted import ShiftedLinear
from featherweight.quant.linear import QuantLinear
from featherweight.quant.scheme import Scheme


@fused.register(LowRank, QuantLinear)
@fused.register(ShiftedLinear, QuantLinear)
def serve(adapter: LowRank, host: Any, x: Tensor) -> Tensor:
    """LoRA on QuantLinear, found by `core.fused`."""
    if type(host.scheme).linear is not Scheme.linear:
        return adapter(Base(host), x)
    A, B = adapter.factors()
    return lowrank_coded(x, host.packed, host.scheme, host.shape, host.bias, A, B, adapter.scale, adapter.drops)


def lowrank_coded(
    x: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, int], bias: Tensor | None,
    A: Tensor, B: Tensor, scale: float, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """x Ŵᵀ + bias + scale · drop(x) Aᵀ Bᵀ for x (..., in), packed Ŵ of shape (out, in), A (r, in), B (out, r).

    `dropout` is the probability to drop (0 where not training). Under autocast it computes in autocast's dtype. First
    derivatives only: a second backward raises RuntimeError.
    """
    dtype = compute_dtype(x)
    if not (torch.is_grad_enabled() or dropout):
        return scheme.adapted(x.to(dtype), packed, shape, cast(bias, dtype), A, B, scale)
    mask = keep_mask(x.shape, dropout, x.device) if dropout else None
    c = scale / keep_probability(dropout)
    if not torch.is_grad_enabled():
        return forward(x.to(dtype), packed, scheme, shape, cast(bias, dtype), A.to(dtype), B.to(dtype), c, mask)[0]
    return CodedLowRank.apply(x, bias, A, B, c, mask, dtype, scheme, shape, tuple(packed), *packed.values())


def forward(
    x: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, int], bias: Tensor | None,
    A: Tensor, B: Tensor, c: float, mask: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(y, h), all in one dtype."""
    y = scheme.product(flat(x), packed, shape, bias)
    h = flat(x if mask is None else keep(x, mask)).mm(A.t())
    y.addmm_(h, B.t(), alpha=c)
    # not `view`: the output must be free for in-place use by the model
    return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], shape[0]]), h


class CodedLowRank(torch.autograd.Function):
    """The module's equations; arguments (x, bias, A, B, c, m, compute dtype, scheme, shape, names of packed, those)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, c: float, mask: Tensor | None,
        dtype: torch.dtype, scheme: Scheme, shape: tuple[int, int], names: tuple[str, ...], *packed: Tensor,
    ) -> Tensor:  # fmt: skip
        held = dict(zip(names, packed, strict=True))
        low = A.to(dtype), B.to(dtype)
        y, h = forward(x.to(dtype), held, scheme, shape, cast(bias, dtype), *low, c, mask)
        ctx.save_for_backward(x if A.requires_grad else None, A, B, h, mask, *packed)
        ctx.c, ctx.scheme, ctx.shape, ctx.names, ctx.x_shape, ctx.x_dtype = c, scheme, shape, names, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, h, mask, *packed = ctx.saved_tensors
        need_x, need_bias, need_A, need_B = ctx.needs_input_grad[:4]
        g = flat(g)
        dx = dbias = None
        gb = g.mm(thin(B, g.dtype)).mul_(ctx.c)
        dA = gradient_of_A(x, gb, mask).to(A.dtype) if need_A else None
        dB = h.t().mm(g).mul_(ctx.c).t().to(B.dtype) if need_B else None
        if need_x:
            held = dict(zip(ctx.names, packed, strict=True))
            dx = with_low_rank(ctx.scheme.input_gradient(g, held, ctx.shape), gb, A.to(g.dtype), mask)
            dx = dx.view(ctx.x_shape).to(ctx.x_dtype)
        if need_bias:
            dbias = g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, dbias, dA, dB, *(None for _ in range(6 + len(packed)))
