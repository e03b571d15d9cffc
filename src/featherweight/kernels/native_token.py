"""What lies between the products of a token, in native code: a norm, angles of positions, attention of one query.

    norm(x, w, ε)               w · x / √(mean x² + ε), x (..., d)
    rotate(q, k, cos, sin)      u cos + (-u₂, u₁) sin of both, u = (u₁, u₂) halves; q (b, h, 1, d), k (b, g, 1, d)
    attend(q, k, v, seen, s)    softmax(s q kᵀ) v (b, 1, h, d) of k, v (b, g, t, d), without the keys where `seen`, a
                                mask (b, 1, 1, t), is False

Each is a few microseconds of work for which torch runs ten operations. An argument that is not served is answered with
NotImplemented. Roundings are torch's, step by step; sums run in another order.
"""

from typing import Any

import torch
from torch import Tensor

from featherweight.kernels.native_ops import TYPES, fits, pointer, serves


@serves("norm")
def norm(run: Any, x: Tensor, w: Tensor, eps: float) -> Any:
    k = x.shape[-1]
    if x.dtype not in TYPES or not (fits(x, x.dtype, 1) and fits(w, x.dtype) and w.shape == (k,)):
        return NotImplemented
    y = torch.empty_like(x)
    run(x.data_ptr(), TYPES[x.dtype], w.data_ptr(), y.data_ptr(), eps, x.numel() // k, k)
    return y


def single(q: Tensor, k: Tensor) -> bool:
    """One query a head, and keys of its kind, four dimensions each."""
    fine = q.dtype in TYPES and fits(q, q.dtype, 1) and fits(k, q.dtype, 1)
    return fine and q.dim() == k.dim() == 4 and q.shape[2] == 1


@serves("rotate")
def rotate(run: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
    if not (single(q, k) and fits(cos, q.dtype) and fits(sin, q.dtype)):
        return NotImplemented
    (b, h, _, d), g = q.shape, k.shape[1]
    if d % 2 or k.shape != (b, g, 1, d) or cos.shape not in ((b, 1, d), (1, 1, d)) or sin.shape != cos.shape:
        return NotImplemented
    made = torch.empty_like(q), torch.empty_like(k)
    run(
        q.data_ptr(), k.data_ptr(), TYPES[q.dtype], cos.data_ptr(), sin.data_ptr(), *(y.data_ptr() for y in made),
        b, h, g, d, d if len(cos) > 1 else 0,
    )  # fmt: skip
    return made


@serves("attend")
def attend(run: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Any:
    if not (single(q, k) and fits(v, q.dtype)):
        return NotImplemented
    (b, h, _, d), (_, g, t, _) = q.shape, k.shape
    if k.shape != (b, g, t, d) or v.shape != k.shape or h % g:
        return NotImplemented
    if seen is not None and not (fits(seen, torch.bool) and seen.shape in ((b, 1, 1, t), (1, 1, 1, t))):
        return NotImplemented
    y = torch.empty((b, 1, h, d), dtype=q.dtype)
    run(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), TYPES[q.dtype], pointer(seen),
        t if seen is not None and len(seen) > 1 else 0, y.data_ptr(), scale, b, h, g, t, d, torch.get_num_threads(),
    )  # fmt: skip
    return y
