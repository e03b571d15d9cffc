"""Attention with dropout on its probabilities, on a CPU, as one autograd function.

    P = softmax(s q kᵀ + bias)      o = (m∘P) v / c      c the keep probability
    D = Σ g∘o      dv = (m∘P)ᵀ g / c      dS = (m∘P)∘(g vᵀ) / c - P D      dq = s dS k      dk = s dSᵀ q

q (b, h, n, d)   k, v (b, h, t, d)   P and m∘P (b, h, n, t), kept for backward   D (b, h, n, 1)

torch's CPU flash kernel takes no dropout and its fallback draws a float per probability and runs 16-bit inputs in
float32. Nothing of a model's code changes: while a fused attention module runs, its calls of
`scaled_dot_product_attention` that drop are answered here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from featherweight.kernels.first import first_derivative
from featherweight.kernels.noise import keep, keep_mask, keep_probability


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, p: float) -> Tensor:
    """Attention of q (b, h, n, d) over k, v (b, h, t, d) with dropout p; `bias` is added to the logits and gets no
    gradient."""
    mask = keep_mask((*q.shape[:-1], k.shape[-2]), p, q.device)
    return DroppedAttention.apply(q, k, v, bias, scale, mask, 1 / keep_probability(p))


class DroppedAttention(torch.autograd.Function):
    """The module's equations; arguments (q, k, v, bias, s, m, 1/c)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, mask: Tensor, gain: float
    ) -> Tensor:
        logits = (q * scale).matmul(k.transpose(-1, -2))
        P = torch.softmax(logits if bias is None else logits.add_(bias), -1)
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


class Redirect(TorchFunctionMode):
    """Answers `scaled_dot_product_attention` where it drops; every other function runs as it is."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """torch's `scaled_dot_product_attention`, served here where it drops and torch's kernels are slow."""
    learned = attn_mask is not None and attn_mask.requires_grad
    if not 0 < dropout_p < 1 or enable_gqa or learned or query.dim() != 4 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    bias = additive(attn_mask, query)
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        bias = additive(seen, query)
    return dropped_attention(query, key, value, bias, scale or query.shape[-1] ** -0.5, dropout_p)


def additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the logits: the mask itself, or the dtype's lowest number where a boolean mask forbids.

    Not -inf: a row that may attend to nothing (padding) then stays finite.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype).masked_fill_(~mask, torch.finfo(like.dtype).min)


def fits(module: nn.Module, cls: type[nn.Module]) -> bool:
    """An attention module of transformers (its forward asks the attention registry) that drops probabilities."""
    code = getattr(inspect.unwrap(cls.forward), "__code__", None)
    if code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names:
        return False
    rates = (getattr(module, name, 0.0) for name in ("attention_dropout", "dropout", "dropout_prob"))
    return any(0 < float(getattr(rate, "p", rate if isinstance(rate, float) else 0.0)) < 1 for rate in rates)


def forward_of(cls: type[nn.Module]) -> Callable[..., Any]:
    """The forward of a fused attention module: its own, with the dropping attention redirected."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.training or torch.compiler.is_compiling():
            return cls.forward(self, *args, **kwargs)
        with Redirect():
            return cls.forward(self, *args, **kwargs)

    return forward
