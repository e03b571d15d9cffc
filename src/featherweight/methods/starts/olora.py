"""OLoRA: start from an orthonormal basis of the weight.

    W = Q R        B₀ = Q[:, :r]      A₀ = R[:r]        h = W x + s (B A − B₀ A₀) x

The paper puts W − s B₀ A₀ in W's place; here W stays as it is and the change is counted from the start.
Source: Büyükakyüz 2024, arXiv:2406.01775.
"""

import torch
from torch import Tensor


def olora(W: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """W (out, in) -> A₀ (r, in), B₀ (out, r)."""
    Q, R = torch.linalg.qr(W)
    return R[:rank], Q[:, :rank]
