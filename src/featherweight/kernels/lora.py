"""LoRA on a frozen linear layer as one autograd function.

    forward    y = x Wᵀ + b + c (m∘x) Aᵀ Bᵀ       c = s / keep probability; m, the dropout mask, is 1 without dropout
    backward   gb = c g B      dA = gbᵀ (m∘x)      dB = c gᵀ h, h = (m∘x) Aᵀ      dx = g W + m∘(gb A)

x (n, in)   W (out, in)   A (r, in)   B (out, r)   m (n, in) int16   h, gb (n, r)

Autograd would keep the dropped input, the low-rank output and, for float32 adapters on a bfloat16 base, float32
copies of all of them. Here x, W, A and B are kept by reference and only m and h are new; where A is frozen, x is not
kept either (LoRA-FA). A and B are cast to the compute dtype, never the activations to theirs. Products with a thin side
are laid out so that the long axis is contiguous (2-4x in BLAS).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.core import fused
from featherweight.core.base import Base
from featherweight.core.precision import cast, compute_dtype
from featherweight.kernels.first import first_derivative
from featherweight.kernels.noise import keep, keep_, keep_mask, keep_probability
from featherweight.methods.lowrank import LowRank
from featherweight.methods.shifted import ShiftedLinear
from featherweight.quant.ops import linear


@fused.register(LowRank, nn.Linear)
@fused.register(ShiftedLinear, nn.Linear)
def serve(adapter: LowRank, host: Any, x: Tensor) -> Tensor:
    """LoRA on nn.Linear, found by `core.fused`; a weight that trains takes the plain path."""
    if host.weight.requires_grad:
        return adapter(Base(host), x)
    A, B = adapter.factors()
    return lowrank_linear(x, host.weight, host.bias, A, B, adapter.scale, adapter.drops)


def lowrank_linear(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """x Wᵀ + bias + scale · drop(x) Aᵀ Bᵀ for x (..., in), W (out, in), A (r, in), B (out, r) -> (..., out).

    W must be frozen; the bias need not be. `dropout` is the probability to drop (0 where not training). Under
    autocast it computes in autocast's dtype. First derivatives only: a second backward raises RuntimeError.
    """
    if W.requires_grad:
        raise ValueError("lowrank_linear: the weight must be frozen, got one that requires grad")
    dtype = compute_dtype(x)
    if not torch.is_grad_enabled() and not dropout:
        return linear(x.to(dtype), W.to(dtype), cast(bias, dtype), A, B, scale)
    mask = keep_mask(x.shape, dropout, x.device) if dropout else None
    return FrozenLowRank.apply(x, W, bias, A, B, scale / keep_probability(dropout), mask, dtype)


def forward(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y, h), all in one dtype."""
    y = F.linear(flat(x), W, bias)
    h = flat(x if mask is None else keep(x, mask)).mm(A.t())
    y.addmm_(h, B.t(), alpha=scale)
    # not `view`: the output must be free for in-place use by the model
    return torch.ops.aten._unsafe_view(y, [*x.shape[:-1], W.shape[0]]), h


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class FrozenLowRank(torch.autograd.Function):
    """The module's equations; arguments (x, W, bias, A, B, c, m, compute dtype)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, mask: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        y, h = forward(x.to(dtype), W.to(dtype), cast(bias, dtype), A.to(dtype), B.to(dtype), scale, mask)
        ctx.save_for_backward(x if A.requires_grad else None, W, A, B, h, mask)
        ctx.scale, ctx.shape, ctx.x_dtype = scale, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B, h, mask = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B = ctx.needs_input_grad[:5]
        g = flat(g)
        dx = dbias = None
        gb = g.mm(thin(B, g.dtype)).mul_(ctx.scale)
        dA = gradient_of_A(x, gb, mask).to(A.dtype) if need_A else None
        dB = h.t().mm(g).mul_(ctx.scale).t().to(B.dtype) if need_B else None
        if need_x:
            dx = input_gradient(g, W.to(g.dtype), gb, A.to(g.dtype), mask).view(ctx.shape).to(ctx.x_dtype)
        if need_bias:
            dbias = g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, None, dbias, dA, dB, None, None, None


def gradient_of_A(x: Tensor, gb: Tensor, mask: Tensor | None) -> Tensor:
    """gbᵀ (m∘x): (r, in)."""
    x = x.to(gb.dtype)
    return gb.t().mm(flat(x if mask is None else keep(x, mask)))


def thin(B: Tensor, dtype: torch.dtype) -> Tensor:
    """B (out, r) with its long axis contiguous, for g B."""
    return B.to(dtype).t().contiguous().t()


def input_gradient(g: Tensor, W: Tensor, gb: Tensor, A: Tensor, mask: Tensor | None) -> Tensor:
    """g W + m∘(gb A): (n, in)."""
    return with_low_rank(g.mm(W), gb, A, mask)


def with_low_rank(dx: Tensor, gb: Tensor, A: Tensor, mask: Tensor | None) -> Tensor:
    """dx + m∘(gb A), in place: (n, in)."""
    return dx.addmm_(gb, A) if mask is None else dx.add_(keep_(gb.mm(A), flat(mask)))
