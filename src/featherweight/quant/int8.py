"""Products over int8 codes: rows quantized as they come, summed exactly in int32, rescaled by row and column.

    y = (q Cᵀ) ∘ r ⊗ c + b        q, r = rows(x)        x ≈ r q    C (out, in) int8, c (out,): Ŵ = c C
    dx = (p C) ∘ t                p, t = rows(g ∘ c)    the scale of the summed axis goes into g before it is quantized

Columns of x that somewhere reach a threshold (outliers, O) are summed in floating point over Ŵ, and so are the columns
K whose float weights were kept; neither counts for the scale of a row:

    y = x_O Ŵ_Oᵀ + x_K W_Kᵀ + (q Cᵀ) ∘ r ⊗ c + b          q, r = rows(x without O and K)
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.quant import ops

EXACT = (2**31 - 1) // 127**2  # the longest sum of products of two codes that int32 is sure to hold
Kept = tuple[Tensor, Tensor]  # numbers of columns (k,), their weights (out, k); the codes there are 0


def product(
    x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, threshold: float = 0.0, kept: Kept | None = None
) -> Tensor:
    """x (n, in), codes int8 (out, in), scale float32 (out,) -> (n, out) in x's dtype; threshold 0: no outliers."""
    aside = None if kept is None else torch.zeros_like(codes[0], dtype=torch.bool).index_fill(0, kept[0].long(), True)
    q, row = ops.quantize_rows(x, aside)
    hot = outliers(x, row, threshold)
    if hot is not None:
        q, row = ops.quantize_rows(x, hot if aside is None else hot | aside)
    acc = int_mm(q, codes.t())
    if hot is None and kept is None:
        return ops.rescale(acc, row, scale, bias, x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    y = ops.rescale(acc, row, scale, bias, wide)
    if hot is not None:
        over = outlier_op if torch.compiler.is_compiling() else outlier_product
        y.addcmul_(over(x, codes, hot), scale.to(wide))
    if kept is not None:
        y.addmm_(x.index_select(1, kept[0]).to(wide), kept[1].to(wide).t())
    return y.to(x.dtype)


def outliers(x: Tensor, row: Tensor, threshold: float) -> Tensor | None:
    """Which columns of x (n, in) somewhere reach the threshold: (in,) bool, None for none. `row` are x's row scales."""
    if not threshold or not len(x):
        return None
    if torch.compiler.is_compiling():
        return x.abs().amax(0) >= threshold
    if float(row.max()) * 127 < threshold * (1 - 1e-6):  # a NaN looks closer
        return None
    hot = x.abs().amax(0) >= threshold
    return hot if hot.any() else None


def outlier_product(x: Tensor, codes: Tensor, hot: Tensor) -> Tensor:
    """x_O C_Oᵀ, (n, out), in float32 or wider."""
    at = hot.nonzero().squeeze(1)
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.index_select(1, at).to(wide) @ codes.index_select(1, at).to(wide).t()


# How many columns are hot is known from data only, so a compiled graph holds the sum over them as one operation.
outlier_op = torch.library.custom_op("featherweight::outlier_product", outlier_product, mutates_args=())


@outlier_op.register_fake
def outlier_shape(x: Tensor, codes: Tensor, hot: Tensor) -> Tensor:
    return x.new_empty(len(x), len(codes), dtype=torch.promote_types(x.dtype, torch.float32))


def input_gradient(g: Tensor, codes: Tensor, scale: Tensor, kept: Kept | None = None) -> Tensor:
    """g (n, out) -> g Ŵ (n, in) in g's dtype, through int8; columns that were kept, through their weights."""
    top = scale.amax().clamp_min(torch.finfo(scale.dtype).tiny)  # apart, so that 16 bits do not underflow
    p, row = ops.quantize_rows(g * (scale / top).to(g.dtype))
    dx = ops.rescale(int_mm(p, codes), row, top.expand(codes.shape[1]), None, g.dtype)
    return dx if kept is None else dx.index_copy(1, kept[0].long(), g @ kept[1].to(g.dtype))


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """a int8 (n, k), b int8 (k, m) -> int32 (n, m), or float32 where int32 could overflow."""
    k = a.shape[1]
    if k > EXACT:
        return int_mm(a[:, : k // 2], b[: k // 2]).float() + int_mm(a[:, k // 2 :], b[k // 2 :]).float()
    if k == 1:  # torch 2.13's leaves the result unwritten where b is a turned column
        return a.int() * b.int()
    if not a.is_cuda:
        return torch._int_mm(a, b)
    n, m = len(a), b.shape[1]  # on CUDA: more than 16 rows, both other sides multiples of 8
    a = F.pad(a, (0, -k % 8, 0, max(0, 17 - n)))
    b = F.pad(b, (0, -m % 8, 0, -k % 8)) if k % 8 or m % 8 else b
    return torch._int_mm(a, b)[:n, :m]
