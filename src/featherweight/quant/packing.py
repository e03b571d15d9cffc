"""Codes of k bits as a stream of bits, first code in the highest bits: k = 4 puts the first in the high nibble.

    k = 3    aaabbbcc cdddeeef ffggghhh        8 codes in 3 bytes; n codes take ⌈n k / 8⌉ bytes

The tail is filled up with a code of the caller's choice (zero's).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.quant.blocks import PIECE


def size(n: int, bits: int) -> int:
    """Bytes that n codes take."""
    return -(-n * bits // 8)


def pack(codes: Tensor, bits: int, fill: int = 0) -> Tensor:
    """uint8 (n,), each below 2^bits -> uint8 (⌈n bits / 8⌉,)."""
    if bits == 8:
        return codes
    parts = [pack_piece(codes[a : a + PIECE], bits, fill) for a in range(0, codes.numel(), PIECE)]
    return torch.cat(parts)[: size(codes.numel(), bits)]


def pack_piece(codes: Tensor, bits: int, fill: int) -> Tensor:
    many, width = group(bits)
    rows = F.pad(codes, (0, -codes.numel() % many), value=fill).view(-1, many).to(wide(width))
    word = rows[:, 0].clone()
    for i in range(1, many):
        word = word << bits | rows[:, i]
    return torch.stack([word >> 8 * (width - 1 - j) & 255 for j in range(width)], 1).to(torch.uint8).view(-1)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """uint8 (⌈n bits / 8⌉,) -> uint8 (n,)."""
    if bits == 8:
        return packed
    many, width = group(bits)
    rows = F.pad(packed, (0, -packed.numel() % width)).view(-1, width).to(wide(width))
    word = rows[:, 0]
    for j in range(1, width):
        word = word << 8 | rows[:, j]
    low = (1 << bits) - 1
    return torch.stack([word >> bits * (many - 1 - i) & low for i in range(many)], 1).view(-1)[:n].to(torch.uint8)


def group(bits: int) -> tuple[int, int]:
    """The fewest codes that fill whole bytes, and those bytes."""
    common = bits & -bits  # gcd(bits, 8): the lowest bit that is set
    return 8 // common, bits // common


def wide(width: int) -> torch.dtype:
    """An integer that holds a group of so many bytes."""
    return torch.uint8 if width == 1 else torch.int32 if width < 4 else torch.int64
