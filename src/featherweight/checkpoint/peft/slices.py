"""Slices of a fused projection as one tensor of the whole projection, exactly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.checkpoint.entry import Entry


def diagonal(
    key: str,
    parts: Sequence[str],
    rows: Sequence[Tensor | None],
    shapes: Sequence[Sequence[int]],
    folds: Sequence[float],
    out: int,
) -> Entry:
    """LoRA's B, block by block: Bᵢ (outᵢ, rᵢ) times its fold, at the rows of its slice (None: all) and the columns of
    its rank.

    Where a fold is not ±1 the whole is kept in fp64: dividing then rounds back to the very same Bᵢ.
    """
    ranks = [shape[1] for shape in shapes]
    edges = [sum(ranks[:i]) for i in range(len(ranks) + 1)]
    whole = (out, edges[-1], *shapes[0][2:])
    every = [torch.arange(out) if ix is None else ix.cpu() for ix in rows]

    def pack(given: Sequence[Tensor]) -> Tensor:
        dtype = given[0].dtype if all(abs(f) == 1 for f in folds) else torch.float64
        B = torch.zeros(whole, dtype=dtype, device=given[0].device)
        for at, ix, b, fold in zip(edges, every, given, folds, strict=False):
            B[ix.to(B.device), at : at + b.shape[1]] = b.to(dtype) * fold
        return B

    def unpack(kept: Tensor) -> Sequence[Tensor]:
        cut = [kept[ix][:, a:b] for ix, a, b in zip(every, edges, edges[1:], strict=False)]
        return [b if fold == 1 else b.double() / fold for b, fold in zip(cut, folds, strict=True)]

    return Entry(key, whole, tuple(parts), pack, unpack)


def magnitudes(key: str, parts: Sequence[str], rows: Sequence[Tensor], norms: Tensor) -> Entry:
    """DoRA's magnitudes of a few rows, (outᵢ,) each; every other row has the norm (out,) of the base's own, so that it
    stays as it is.

    What a file says of the other rows is the base's norm in the precision it was saved from, and kept.
    """
    rest = norms.clone()

    def pack(given: Sequence[Tensor]) -> Tensor:
        whole = rest.to(given[0])
        for ix, m in zip(rows, given, strict=True):
            whole[ix.to(whole.device)] = m
        return whole

    def unpack(kept: Tensor) -> Sequence[Tensor]:
        rest.copy_(kept)
        return [kept[ix.cpu()] for ix in rows]

    return Entry(key, tuple(norms.shape), tuple(parts), pack, unpack)


def spread(key: str, parts: Sequence[str], rows: Sequence[Tensor], out: int) -> Entry:
    """(IA)³'s scales of a few rows, (outᵢ, 1) each, in a vector (out, 1) of ones."""

    def pack(given: Sequence[Tensor]) -> Tensor:
        scales = torch.ones(out, 1, dtype=given[0].dtype, device=given[0].device)
        for ix, scale in zip(rows, given, strict=True):
            scales[ix.to(scales.device)] = scale
        return scales

    return Entry(key, (out, 1), tuple(parts), pack, lambda kept: [kept[ix.cpu()] for ix in rows])
