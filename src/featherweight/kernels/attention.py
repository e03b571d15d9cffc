"""Attention as one autograd function, on a CPU: with dropout on its probabilities, and over few keys in 16 bits.

    P = softmax(s q kᵀ + bias)      o = (m∘P) v / c      c the keep probability
    D = Σ g∘o      dv = (m∘P)ᵀ g / c      dS = (m∘P)∘(g vᵀ) / c - P D      dq = s dS k      dk = s dSᵀ q

q (b, h, n, d)   k, v (b, h, t, d)   P and m∘P (b, h, n, t)   D (b, h, n, 1)

torch's CPU flash kernel takes no dropout and its fallback draws a float per probability and runs 16-bit inputs in
float32. Without dropout its 16-bit kernels take twice the time of plain products over 128 keys, and an eighth more
at 256. The logits and their softmax are float32 here as there, and the errors of one size. Nothing of a model's code
changes: while a fused attention module trains, its calls of `scaled_dot_product_attention` of these two kinds are
answered here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from featherweight.core.precision import compute_dtype
from featherweight.kernels.first import first_derivative
from featherweight.kernels.noise import keep, keep_mask, keep_probability

SHORT = 256  # keys up to which plain products are faster than torch's flash kernel and its backward


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, p: float) -> Tensor:
    """Attention of q (b, h, n, d) over k, v (b, h, t, d) with dropout p; `bias` is added to the logits and gets no
    gradient."""
    mask = keep_mask((*q.shape[:-1], k.shape[-2]), p, q.device)
    return DroppedAttention.apply(q, k, v, bias, scale, mask, 1 / keep_probability(p))


def probabilities(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """P (b, h, n, t) in the dtype of q, its logits and their softmax in at least float32, also under autocast."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        logits = (q.to(wide) * scale).matmul(k.to(wide).transpose(-1, -2))
        return torch.softmax(logits if bias is None else logits.add_(bias), -1).to(q.dtype)


class DroppedAttention(torch.autograd.Function):
    """The module's equations; arguments (q, k, v, bias, s, m, 1/c). P and m∘P are kept for backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, mask: Tensor, gain: float
    ) -> Tensor:
        P = probabilities(q, k, bias, scale)
        kept = keep(P, mask)
        o = kept.matmul(v).mul_(gain)
        ctx.save_for_backward(q, k, v, P, kept, o)
        ctx.scale, ctx.gain = scale, gain
        return o

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, P, kept, o = ctx.saved_tensors
        D = (g * o).sum(-1, keepdim=True)
        g = g * ctx.gain
        dv = kept.transpose(-1, -2).matmul(g)
        dS = g.matmul(v.transpose(-1, -2)).mul_(kept).addcmul_(P, D, value=-1)
        return dS.matmul(k).mul_(ctx.scale), dS.transpose(-1, -2).matmul(q * ctx.scale), dv, None, None, None, None


class ShortAttention(torch.autograd.Function):
    """The module's equations with m = c = 1; arguments (q, k, v, bias, s). P is computed again in backward: what is
    kept is what flash attention keeps. One softmax's backward stands for dS: P∘(g vᵀ) - P Σ P∘(g vᵀ)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.scale = scale
        b, h, n, d = q.shape
        o = q.new_empty(b, n, h, d).transpose(1, 2)  # laid out as the model will read it: no second copy
        return o.copy_(probabilities(q, k, bias, scale).matmul(v))

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        P = probabilities(q, k, bias, ctx.scale)
        dv = P.transpose(-1, -2).matmul(g)
        dS = torch.ops.aten._softmax_backward_data(g.matmul(v.transpose(-1, -2)), P, -1, P.dtype)
        return dS.matmul(k).mul_(ctx.scale), dS.transpose(-1, -2).matmul(q).mul_(ctx.scale), dv, None, None


class Redirect(TorchFunctionMode):
    """Answers `scaled_dot_product_attention`; every other function runs as it is."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's `scaled_dot_product_attention`, served here where torch's kernels are slow."""
    learned = attn_mask is not None and attn_mask.requires_grad
    drops = 0 < dropout_p < 1
    dtype = compute_dtype(query)
    short = not dropout_p and dtype.itemsize == 2 and key.shape[-2] <= SHORT
    if not (drops or short) or learned or query.dim() != 4 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    query, key, value = (t.to(dtype) for t in (query, key, value))
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    bias = additive(attn_mask, query)
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        bias = additive(seen, query)
    scale = scale or query.shape[-1] ** -0.5
    if drops:
        return dropped_attention(query, key, value, bias, scale, dropout_p)
    made: Tensor = ShortAttention.apply(query, key, value, bias, scale)
    return made


def additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the logits: the mask itself, or the dtype's lowest number where a boolean mask forbids.

    Not -inf: a row that may attend to nothing (padding) then stays finite.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, torch.finfo(like.dtype).min)


def fits(module: nn.Module, cls: type[nn.Module]) -> bool:
    """An attention module of transformers: its forward asks the attention registry."""
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def forward_of(cls: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a fused attention module: its own, with the calls of attention redirected."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training or torch.compiler.is_compiling():
            return cls.forward(self, *args, **kwargs)
        with Redirect():
            return cls.forward(self, *args, **kwargs)

    return forward
