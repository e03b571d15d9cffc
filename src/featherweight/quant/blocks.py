"""Blocks of a flat tensor, row-major: what shares one scale, and how a large tensor is worked through in pieces.

    per "tensor"  all of it        per "row"  a vector along the last dimension        per 64  64 elements, across rows

The last block may be short. Every granularity is a number of elements, so there is one way through for all three.
"""

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 1 << 22  # elements worked on at a time: temporaries stay near 100 MB whatever the tensor


def elements(per: int | str, shape: tuple[int, ...]) -> int:
    """How many elements share a scale."""
    n = prod(shape)
    return n if per == "tensor" else shape[-1] if per == "row" else min(int(per), max(n, 1))


def blocks(n: int, block: int) -> int:
    """How many blocks n elements make."""
    return -(-n // block) if block else 0


def rows_apart(shape: tuple[int, ...], block: int, bits: int) -> bool:
    """Whether every row has scales and bytes of its own."""
    return len(shape) == 2 and shape[1] % block == 0 and shape[1] * bits % 8 == 0


def pieces(n: int, block: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover n elements: whole blocks (a multiple of 8 of them), or parts of one where blocks are large."""
    step = block * max(8, PIECE // block // 8 * 8)
    if block <= PIECE // 8:
        yield from ((a, min(a + step, n)) for a in range(0, n, step))
        return
    for start in range(0, n, block):
        stop = min(start + block, n)
        yield from ((a, min(a + PIECE, stop)) for a in range(start, stop, PIECE))


def cut(flat: Tensor, block: int) -> Tensor:
    """(n,) -> (blocks, block), the last one filled up with zeros."""
    width = min(block, max(flat.numel(), 1))
    short = -flat.numel() % width
    return (F.pad(flat, (0, short)) if short else flat).view(blocks(flat.numel(), width), width)


def per_block(flat: Tensor, block: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """reduce (m, block) -> (..., m) over every block, the short last one by itself."""
    n = flat.numel()
    full = n - n % block
    parts = [reduce(flat[:full].view(-1, block))] if full else []
    if full < n:
        parts.append(reduce(flat[full:][None]))
    return torch.cat(parts, -1)


def ends(flat: Tensor, block: int) -> Tensor:
    """(2, blocks) in float32: least and greatest element of each block. NaN where a block holds one."""
    return per_block(flat, block, lambda b: torch.stack(torch.aminmax(b, dim=1))).float()


def spread(values: Tensor, block: int, n: int) -> Tensor:
    """One value per block -> one per element (n,)."""
    return values.expand(n) if values.numel() == 1 else values.repeat_interleave(block)[:n]
