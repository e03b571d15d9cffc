"""PiSSA: start from the principal singular values and vectors of the weight.

    W = U S Vᵀ        B₀ = U_r √(S_r / s)      A₀ = √(S_r / s) V_rᵀ        h = W x + s (B A − B₀ A₀) x

s B₀ A₀ is W's best approximation of rank r: what trains is the part of W that matters most. The paper puts W − s B₀ A₀
in W's place; here W stays as it is and the change is counted from the start, which is the same function.
Source: Meng, Wang and Zhang 2024, arXiv:2404.02948.
"""

import torch
from torch import Tensor


def pissa(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """W (out, in) -> A₀ (r, in), B₀ (out, r)."""
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root
