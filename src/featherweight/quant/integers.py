"""Integer codes on a uniform grid, shared by absmax and zero-point.

    q = clamp(round((x - base) / s + z), low, high)        x̂ = (q - z) s + base        |x - x̂| <= s/2 inside the grid

round goes half to even. Codes of 8 bits are int8 in the tensor's own shape, so that integer products can run on them;
codes of fewer bits are stored q - low, packed (`packing.py`).
"""

from math import prod

import torch
from torch import Tensor

from featherweight.quant import codebooks, ops, packing
from featherweight.quant.blocks import blocks, cut, pieces, spread

SLACK = 2**8 * 2.0**-149  # a step below the smallest float32 cannot be stored, of which a grid has 2^k
ROUNDING = 2.0**-22  # of the range: float32 rounding of quotient, sum and product

NIBBLES = "signed4"  # the table of codes stored q + 8
codebooks.add(NIBBLES, tuple(range(-8, 8)))


def stored(shape: tuple[int, ...], bits: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of the codes of a tensor."""
    return (torch.int8, shape) if bits == 8 else (torch.uint8, (packing.size(prod(shape), bits),))


def encode(
    flat: Tensor, shape: tuple[int, ...], block: int, bits: int, low: int, scales: Tensor,
    zeros: Tensor | None = None, base: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """flat (n,), float32 scales, zeros and base of each block -> codes as `stored` says. NaN and ±inf get code z."""
    n, high = flat.numel(), low + 2**bits - 1
    codes = torch.empty(n, dtype=torch.int8 if bits == 8 else torch.uint8, device=flat.device)
    divisor = torch.where(scales == 0, 1.0, scales)
    for a, b in pieces(n, block):
        here = slice(a // block, blocks(b, block))
        x = cut(flat[a:b].float(), block)
        if base is not None:
            x = x - base[here, None]
        q = (x / divisor[here, None]).nan_to_num_(0.0, 0.0, 0.0)
        if zeros is not None:
            q = q + zeros[here, None]
        q = q.round_().clamp_(low, high)
        q = q if bits == 8 else q.sub_(low)
        codes[a:b] = q.view(-1)[: b - a].to(codes.dtype)
    return codes.view(shape) if bits == 8 else packing.pack(codes, bits, fill=-low)


def decode(
    codes: Tensor, shape: tuple[int, ...], dtype: torch.dtype, block: int, bits: int, low: int, scales: Tensor,
    zeros: Tensor | None = None, base: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The inverse: (q - z) s + base in float32, then cast."""
    if zeros is None and base is None and bits in (4, 8):
        if bits == 8:
            return ops.decode8(codes, scales, block, shape, dtype)
        return ops.decode4(codes, scales, codebooks.levels(NIBBLES, codes), block, shape, dtype)
    n = prod(shape)
    q = codes.reshape(-1) if bits == 8 else packing.unpack(codes, bits, n).to(torch.int8).add_(low)
    rows: Tensor = cut(q, block)
    if zeros is not None:
        rows = rows - zeros[:, None]
    rows = rows * scales[:, None]
    if base is not None:
        rows = rows + base[:, None]
    return rows.view(-1)[:n].to(dtype).view(shape)


def bound(W: Tensor, clipped: Tensor, block: int, scales: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Half a step; by how much clipping moved x; by how much that lies outside the grid, [least, most] of its block."""
    n, x, inside = W.numel(), W.detach().reshape(-1).float(), clipped.float()
    least, most = spread(least, block, n), spread(most, block, n)
    excess = (inside - most).clamp_min(0) + (least - inside).clamp_min(0)
    rounding = ROUNDING * torch.maximum(x.abs(), torch.maximum(least.abs(), most.abs())) + SLACK
    return (spread(scales.abs() / 2, block, n) + (x - inside).abs() + excess + rounding).view(W.shape)
