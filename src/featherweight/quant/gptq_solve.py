"""GPTQ's algorithm: round one column after another and let the columns to come make up for the error of each.

    min ‖W X - Ŵ X‖²,  H = 2 X Xᵀ,  U = upper Cholesky factor of H⁻¹
    q_j = round to the grid of w_j,   e = (w_j - ŵ_j) / U_jj,   w_{j+1:} -= e U_{j, j+1:}

Columns are worked off in blocks, and what lies behind a block is brought up to date once. Everything here is
transposed, (in, out), so that a column of W is a row in memory. Frantar et al. 2022, arXiv:2210.17323.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.core.errors import FeatherweightError, Problem

LAZY = 128  # columns to a block
STEP = 0.0015  # by how much damping is raised at least where the factorization fails, as GPTQModel does


@dataclass(frozen=True)
class Grid:
    """The levels s (q - z), q = 0 … 2^bits - 1, of each group; symmetric ones have z = 2^(bits-1)."""

    bits: int
    symmetric: bool

    def fit(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w (group, out) -> scales and zeros (out,), so that the least and the greatest of w and 0 are covered."""
        low, high = w.amin(0).clamp(max=0), w.amax(0).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        s = (high - low) / ((1 << self.bits) - 1)
        s = half_up(torch.where(s == 0, 1.0, s))
        return s, torch.full_like(s, 1 << self.bits - 1) if self.symmetric else (-low / s).round()

    def snap(self, w: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """The codes nearest to w, as floats."""
        return (w / s + z).round().clamp(0, (1 << self.bits) - 1)


def half_up(s: Tensor) -> Tensor:
    """The next scale above that fp16 holds, so that a GPTQ file has the very levels; as it is outside fp16's range."""
    near = s.half().to(s.dtype)
    above = torch.where(near < s, (s * (1 + 2.0**-10)).half().to(s.dtype), near)
    return torch.where((s > 2.0**-14) & above.isfinite(), above, s)


def solve(W: Tensor, H: Tensor, grid: Grid, group: int, g: Tensor, damp: float, static: bool) -> tuple[Tensor, ...]:
    """W (in, out) and H (in, in), columns in the order they are rounded in; g (in,) the group of each.

    Gives codes (in, out), scales and zeros (groups, out). `static` fits every group before the first column is rounded.
    A row of the layer that rounding to nearest serves better keeps that: no row's loss eᵀHe is above it.
    """
    nearest = round_to_nearest(W, grid, g)
    found = compensated(W.clone(), factor(alive(H), damp), grid, group, g, nearest[1:] if static else None)
    worse = loss(W, H, g, *found) > loss(W, H, g, *nearest)
    return tuple(torch.where(worse, b, a) for a, b in zip(found, nearest, strict=True))


def alive(H: Tensor) -> Tensor:
    """H with 1 for inputs that were always 0: their weights are rounded to nearest. They have no loss."""
    return H + torch.diag((H.diagonal() == 0).to(H.dtype))


def loss(W: Tensor, H: Tensor, g: Tensor, codes: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """eᵀHe of each row of the layer, (out,)."""
    E = W - (codes - z[g]) * s[g]
    return (E * (H @ E)).sum(0)


def round_to_nearest(W: Tensor, grid: Grid, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What needs no data: codes (in, out), scales and zeros (groups, out)."""
    fitted = [grid.fit(W[g == i]) for i in range(int(g.max()) + 1)]
    s, z = (torch.stack(t) for t in zip(*fitted, strict=True))
    return grid.snap(W, s[g], z[g]), s, z


def compensated(
    W: Tensor, U: Tensor, grid: Grid, group: int, g: Tensor, fixed: tuple[Tensor, ...] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The module's equations over W, which is used up. Groups that are not fixed are fitted to what W has become."""
    codes = torch.empty_like(W)
    s, z = fixed or (W.new_empty(int(g.max()) + 1, W.shape[1]) for _ in range(2))
    for start, stop in blocks(len(W), group):
        E = W.new_empty(stop - start, W.shape[1])
        for i in range(start, stop):
            k = int(g[i])
            if fixed is None and i % group == 0:
                s[k], z[k] = grid.fit(W[i : i + group])
            codes[i] = grid.snap(W[i], s[k], z[k])
            E[i - start] = e = (W[i] - (codes[i] - z[k]) * s[k]) / U[i, i]
            W[i + 1 : stop].addr_(U[i, i + 1 : stop], e, alpha=-1)
        W[stop:].addmm_(U[start:stop, stop:].T, E, alpha=-1)
    return codes, s, z


def blocks(n: int, group: int) -> Iterator[tuple[int, int]]:
    """Blocks of up to LAZY columns; a group starts where a block starts or lies in it whole, so that none is fitted to
    columns that await their update.
    """
    step = group if group >= LAZY else LAZY // group * group
    for start in range(0, n, step):
        end = min(start + step, n)
        yield from ((i, min(i + LAZY, end)) for i in range(start, end, LAZY))


def factor(H: Tensor, damp: float) -> Tensor:
    """U, upper triangular with UᵀU = (H + d mean(diag H) I)⁻¹; d is `damp`, raised where that is not positive definite.

    H = R Rᵀ with R upper triangular is a Cholesky factorization from the other end, and U = R⁻¹.
    """
    if not H.isfinite().all():
        raise FeatherweightError(str(Problem("the inputs seen in calibration are not finite", fix="check the batches")))
    eye, size, tried = torch.eye(len(H), dtype=H.dtype, device=H.device), H.diagonal().mean(), damp
    while True:
        L, failed = torch.linalg.cholesky_ex((H + tried * size * eye).flip(0, 1))
        if not failed:
            break
        tried = max(2 * tried, STEP)
    if tried != damp:
        warnings.warn(f"GPTQ: the Hessian was not positive definite at damp={damp:g}, took {tried:g}", stacklevel=2)
    return torch.linalg.solve_triangular(L.flip(0, 1), eye, upper=True)
