"""Cross-entropy of a linear head without its logits.

    loss = Σᵢ logsumexp(hᵢ Wᵀ + b) - (hᵢ Wᵀ + b)[tᵢ]        dh = (softmax - onehot) W

h (n, d)   W (V, d)   t (n). A chunk of positions is projected, reduced and turned into its gradient before the next
one is looked at; the gradient of the logits takes their place, a slice of few positions at a time, so that float32
softmaxes stay in cache. Memory is one chunk x V in the dtype of the product, instead of several n x V.
"""

from typing import Any

import torch
from torch import Tensor

from featherweight.core.precision import cast, compute_dtype
from featherweight.kernels.first import first_derivative

LOGITS = 1 << 23  # logits held at once: 32 MB in float32, 16 in bfloat16
SLICE = 1 << 18  # of them, those reduced at once in float32: 1 MB


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, chunk: int | None = None,
    ignore: int = -100,
) -> Tensor:  # fmt: skip
    """Sum over positions of the cross-entropy (nats, float32 scalar) of hidden weightᵀ + bias against labels.

    hidden (n, d), weight (V, d), labels (n) int64 where `ignore` carries no loss, bias (V); `chunk` positions at a
    time. Gradients of hidden, and of weight and bias where they require grad, come from the same pass. First
    derivatives only.
    """
    if hidden.dim() != 2 or labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"linear_cross_entropy: expected hidden (n, d) and labels (n), "
            f"got {tuple(hidden.shape)} and {tuple(labels.shape)}"
        )
    kept = labels != ignore
    if not torch.compiler.is_compiling() and not bool(kept.all()):
        hidden, labels, kept = hidden[kept], labels[kept], kept[kept]
    size = chunk or max(1, LOGITS // weight.shape[0])
    return HeadLoss.apply(hidden, weight, bias, labels, kept, size, compute_dtype(hidden), torch.is_grad_enabled())


class HeadLoss(torch.autograd.Function):
    """The module's equations; arguments (h, W, b, t, whether t counts, chunk, compute dtype, whether to form
    gradients)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kept: Tensor, chunk: int,
        dtype: torch.dtype, grad: bool,
    ) -> Tensor:  # fmt: skip
        needs = [grad and needed for needed in ctx.needs_input_grad[:3]]
        wide = torch.promote_types(dtype, torch.float32)
        inputs = hidden.to(dtype), weight.to(dtype), cast(bias, dtype)
        dh = torch.empty_like(inputs[0]) if needs[0] else None
        dW = torch.zeros_like(weight, dtype=wide) if needs[1] else None
        db = torch.zeros_like(bias, dtype=wide) if bias is not None and needs[2] else None
        loss = hidden.new_zeros((), dtype=wide)
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            loss += reduce_chunk(*inputs, labels[rows], kept[rows], rows, (dh, dW, db))
        ctx.save_for_backward(dh, dW, db)
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias)]
        return loss

    @staticmethod
    @first_derivative
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        grads = (
            None if t is None else (t * g).to(dtype) for t, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *grads, None, None, None, None, None


def reduce_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kept: Tensor, rows: slice,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Tensor:  # fmt: skip
    """The summed loss of `rows`; their gradients are written to dh and added to dW and db."""
    dh, dW, db = grads
    h = hidden[rows]
    logits = torch.nn.functional.linear(h, weight, bias)
    step, form = max(1, SLICE // weight.shape[0]), dh is not None or dW is not None or db is not None
    loss = kept.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    for part, at, counts in zip(logits.split(step), labels.split(step), kept.split(step), strict=True):
        loss += reduce_slice(part, at.clamp(min=0)[:, None], counts, db, form)
    if dh is not None:
        torch.mm(logits, weight, out=dh[rows])
    if dW is not None:
        dW += logits.t().mm(h)
    return loss


def reduce_slice(logits: Tensor, at: Tensor, kept: Tensor, db: Tensor | None, form: bool) -> Tensor:
    """The summed loss of logits (m, V) at labels `at` (m, 1), whose gradient takes their place if `form`."""
    logp = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    loss = -(logp.gather(1, at)[:, 0] * kept).sum()
    if form:
        delta = logp.exp_().scatter_add_(1, at, -torch.ones_like(at, dtype=logp.dtype)).mul_(kept[:, None])
        logits.copy_(delta)
        if db is not None:
            db += delta.sum(0)
    return loss
