"""Codes of 1 to 8 bits as a stream of bytes, row by row: value k of a row has the bits k·b … k·b + b - 1, lowest first.

    b = 4   byte 0 = q0 | q1 << 4             b = 3   bytes 0-2 = q0 | q1 << 3 | ... | q7 << 21

Rows end on a whole byte. Read as little-endian words this is what GPTQ files hold along the input (3 bits too).
"""

from math import ceil, gcd

import torch
from torch import Tensor
from torch.nn import functional as F


def stored(n: int, bits: int) -> int:
    """Bytes of a row of n codes."""
    return ceil(n * bits / 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes (..., n), each below 2^bits -> uint8 (..., stored(n, bits))."""
    n, (span, values, width) = codes.shape[-1], group(bits)
    grouped = F.pad(codes.to(width), (0, -n % values)).unflatten(-1, (-1, values))
    words = (grouped << shifts(values, bits, codes)).sum(-1, keepdim=True)  # disjoint bits: the sum is their union
    return (words >> shifts(span, 8, codes) & 255).to(torch.uint8).flatten(-2)[..., : stored(n, bits)].contiguous()


def unpack(stream: Tensor, bits: int, n: int) -> Tensor:
    """uint8 (..., stored(n, bits)) -> codes uint8 (..., n)."""
    span, values, width = group(bits)
    grouped = F.pad(stream, (0, -stream.shape[-1] % span)).unflatten(-1, (-1, span)).to(width)
    words = (grouped << shifts(span, 8, stream)).sum(-1, keepdim=True) if span > 1 else grouped
    return (words >> shifts(values, bits, stream) & (1 << bits) - 1).to(torch.uint8).flatten(-2)[..., :n]


def group(bits: int) -> tuple[int, int, torch.dtype]:
    """The least whole number of bytes that holds a whole number of codes: bytes, codes, a type wide enough."""
    span, values = bits // gcd(bits, 8), 8 // gcd(bits, 8)
    return span, values, torch.uint8 if span == 1 else torch.int32 if span < 4 else torch.int64


def shifts(count: int, step: int, like: Tensor) -> Tensor:
    return torch.arange(0, count * step, step, device=like.device)
