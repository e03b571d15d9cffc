"""Range clipping: a block's range is cut before its scale is taken, outliers go to the ends of the grid.

    percentile p    c = the ⌈p/100 · n⌉-th smallest |w| of the block, w -> clamp(w, -c, c)
    mse             w -> clamp(w, a·min, a·max), a = argmin Σ |w - ŵ|^2.4 over 1, 0.99, ..., 0.21

A few outliers cost every other value its resolution; cutting them trades their error for all others'. The grid of 100,
the least factor of 0.2 and the norm of 2.4 are those of the GPTQ repository (Frantar et al. 2022, arXiv:2210.17323).
Clipping comes before the codec and knows no format.
"""

from collections.abc import Callable, Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem
from featherweight.quant.blocks import blocks, cut, per_block, pieces
from featherweight.quant.scheme import Scheme

GRID, LEAST, NORM = 100, 0.2, 2.4
SEARCHED = 1 << 22  # elements searched at a time

Clip = float | str | None


def problems(noun: Any) -> Iterator[Problem]:
    """`clip` is None, "mse" or a percentile of |w| above 0 and at most 100."""
    clip = noun.clip
    number = type(clip) in (int, float) and 0 < clip <= 100
    if clip is not None and clip != "mse" and not number:
        where = f"{type(noun).__name__}.clip"
        yield Problem("not a valid value", where, 'none, "mse" or a percentile of |w| (99.9)', repr(clip))


def clipped(flat: Tensor, clip: Clip, block: int, codec: Callable[[int], Scheme], symmetric: bool = True) -> Tensor:
    """flat (n,) with every block clamped to its range. `codec(width)` is the scheme unclipped, in blocks so wide."""
    if clip is None:
        return flat
    if clip == "mse":
        limits = per_block(flat, block, lambda b: least_error(b, codec(b.shape[1]), symmetric))
    else:
        limits = per_block(flat, block, lambda b: percentile(b, float(clip)))
    out = torch.empty_like(flat)
    for a, b in pieces(flat.numel(), block):
        low, high = limits[:, a // block : blocks(b, block), None].to(flat.dtype)
        out[a:b] = torch.clamp(cut(flat[a:b], block), low, high).view(-1)[: b - a]
    return out


def percentile(rows: Tensor, p: float) -> Tensor:
    """(m, block) -> (2, m): the limits -c and c."""
    k = max(1, ceil(p / 100 * rows.shape[1]))
    magnitudes = rows.abs()
    c = magnitudes.kthvalue(k, dim=1).values
    c = torch.where(magnitudes.amax(1).isfinite(), c, torch.nan)  # infinity is not to be clipped out of sight
    return torch.stack((-c, c))


def least_error(rows: Tensor, codec: Scheme, symmetric: bool) -> Tensor:
    """(m, block) -> (2, m): the limits of least error."""
    step = max(1, SEARCHED // rows.shape[1])
    parts = [search(rows[i : i + step].float(), codec, symmetric) for i in range(0, len(rows), step)]
    return torch.cat(parts, 1)


def search(rows: Tensor, codec: Scheme, symmetric: bool) -> Tensor:
    low, high = rows.amin(1, keepdim=True).clamp_max(0), rows.amax(1, keepdim=True).clamp_min(0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    best = torch.full((len(rows), 1), torch.inf, device=rows.device)
    factor = torch.ones_like(best)
    for i in range(round((1 - LEAST) * GRID)):
        a = 1 - i / GRID
        shrunk = torch.clamp(rows, a * low, a * high)
        back = codec.decode(codec.encode(shrunk), tuple(rows.shape), torch.float32)
        error = (back - rows).abs().pow(NORM).sum(1, keepdim=True)
        better = error < best
        best, factor = torch.where(better, error, best), torch.where(better, a, factor)
    return torch.cat((factor * low, factor * high), 1).T
