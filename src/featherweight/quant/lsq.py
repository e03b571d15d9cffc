"""LSQ, learned step size quantization: the step of a uniform grid trains along with the values.

    v = x / s        x̂ = clamp(round(v), Qn, Qp) s          Qn = -2^(k-1), Qp = 2^(k-1) - 1

    dL/dx = dL/dx̂   where Qn < v < Qp, else 0
    dL/ds = g Σ dL/dx̂ · { Qn where v ≤ Qn;  Qp where v ≥ Qp;  round(v) - v between }          g = 1 / √(N Qp)

N is how many values share the step. It begins at 2 mean|x| / √Qp, which is wide (0.60 for N(0, 1) in 4 bits; the error
is least at 0.34), or with `clip="mse"` on the scheme where the error is least: better for short runs.
torch's own learnable fake-quantize counts the half steps beyond both ends as inside (its test is on the rounded v), and
agrees everywhere else.
Source: Esser et al. 2019, Learned Step Size Quantization, arXiv:1902.08153.
"""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem
from featherweight.quant import fields, integers
from featherweight.quant.absmax import Absmax
from featherweight.quant.blocks import cut, elements, per_block, spread
from featherweight.quant.scheme import Packed, Scheme


def lsq(x: Tensor, step: Tensor, bits: int, block: int) -> Tensor:
    """x on a grid of `bits` bits, step (blocks,) float32: one for each `block` elements of the flat x; x's dtype."""
    high = 2 ** (bits - 1) - 1
    return LearnedStep.apply(x, step, -high - 1, high, block, min(block, x.numel()))


def lsq_input(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """x (..., features) with one step (1,) for all, N = features; the grid is symmetric, as int8 activations are."""
    high = 2 ** (bits - 1) - 1
    return LearnedStep.apply(x, step, -high, high, max(x.numel(), 1), x.shape[-1])


def first_step(x: Tensor, bits: int, block: int) -> Tensor:
    """2 mean|x| / √Qp of each block, (blocks,); a block of zeros begins at the mean of the others, or at 1."""
    flat = x.detach().reshape(-1).float()
    step = per_block(flat, block, lambda b: b.abs().mean(1)) * 2 / (2 ** (bits - 1) - 1) ** 0.5
    some = step[step > 0]
    return torch.where(step > 0, step, some.mean() if some.numel() else torch.ones_like(step))


def start(scheme: Any, W: Tensor) -> Tensor:
    """Where the steps of a weight begin: where LSQ says, or on the scheme's own clipped grid."""
    if scheme.clip is not None:
        return scheme.encode(W)["scales"]
    return first_step(W, *grid(scheme, tuple(W.shape)))


class LearnedStep(torch.autograd.Function):
    """The module's equations; arguments (x, step, Qn, Qp, block, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, block: int, count: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high, ctx.block, ctx.count = low, high, block, count
        s, v = ratio(x, step, block)
        return (v.round().clamp(low, high) * s).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        _, v = ratio(x, step, ctx.block)
        within = (v > ctx.low) & (v < ctx.high)
        ds = g.float() * torch.where(within, v.round() - v, v.clamp(ctx.low, ctx.high))
        ds = cut(ds.reshape(-1), ctx.block).sum(1) / (ctx.count * ctx.high) ** 0.5
        return g * within, ds.to(step.dtype), None, None, None, None


def ratio(x: Tensor, step: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(s, x / s) in float32, in x's shape."""
    s = spread(step, block, x.numel()).view(x.shape)
    return s, x.float() / torch.where(s == 0, 1.0, s)


@singledispatch
def grid(scheme: Scheme, shape: tuple[int, ...]) -> tuple[int, int]:
    """(bits, elements that share a step) of a scheme whose step can be learned: a uniform grid with 0 in its middle."""
    raise InputError(
        Problem("it has no uniform grid around 0, so there is no step to learn", "QAT.scheme",
                "a scheme such as Absmax(bits=4)", repr(scheme), "learned_scale=False, or another scheme")
    )  # fmt: skip


@singledispatch
def packed_at(scheme: Scheme, x: Tensor, step: Tensor) -> Packed:
    """x as the scheme's packed tensors on a given grid: they decode to `lsq(x, step)`, bit for bit."""
    raise TypeError(f"{scheme!r} has no steps to be given")


@grid.register
def absmax_grid(scheme: Absmax, shape: tuple[int, ...]) -> tuple[int, int]:
    return scheme.bits, elements(scheme.per, shape)


@packed_at.register
def absmax_at(scheme: Absmax, x: Tensor, step: Tensor) -> Packed:
    shape, step = tuple(x.shape), step.detach().float()
    codes = integers.encode(fields.weight(scheme, x), shape, elements(scheme.per, shape), scheme.bits, scheme.low, step)
    return {"codes": codes, "scales": step.clone()}
