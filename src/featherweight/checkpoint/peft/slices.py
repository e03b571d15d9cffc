"""Slices of a fused projection as one tensor of the whole projection, exactly."""

from collections.abc import Sequence

import torch
from torch import Tensor

from featherweight.checkpoint.entry import Entry


def diagonal(
    key: str, parts: Sequence[str], rows: Sequence[Tensor], ranks: Sequence[int], folds: Sequence[float], out: int
) -> Entry:
    """LoRA's B, block by block: Bᵢ (outᵢ, rᵢ) times its fold, at the rows of its slice and the columns of its rank.

    Where a fold is not 1 the whole is kept in fp64: dividing then rounds back to the very same Bᵢ.
    """
    edges = [sum(ranks[:i]) for i in range(len(ranks) + 1)]

    def pack(given: Sequence[Tensor]) -> Tensor:
        dtype = given[0].dtype if all(f == 1 for f in folds) else torch.float64
        B = torch.zeros(out, edges[-1], dtype=dtype, device=given[0].device)
        for at, ix, b, fold in zip(edges, rows, given, folds, strict=False):
            B[ix.to(B.device), at : at + b.shape[1]] = b.to(dtype) * fold
        return B

    def unpack(kept: Tensor) -> Sequence[Tensor]:
        cut = [kept[ix.cpu()][:, a:b] for ix, a, b in zip(rows, edges, edges[1:], strict=False)]
        return [b if fold == 1 else b.double() / fold for b, fold in zip(cut, folds, strict=True)]

    return Entry(key, (out, edges[-1]), tuple(parts), pack, unpack)


def spread(key: str, parts: Sequence[str], rows: Sequence[Tensor], out: int) -> Entry:
    """(IA)³'s scales of a few rows, (outᵢ, 1) each, in a vector (out, 1) of ones."""

    def pack(given: Sequence[Tensor]) -> Tensor:
        scales = torch.ones(out, 1, dtype=given[0].dtype, device=given[0].device)
        for ix, scale in zip(rows, given, strict=True):
            scales[ix.to(scales.device)] = scale
        return scales

    return Entry(key, (out, 1), tuple(parts), pack, lambda kept: [kept[ix.cpu()] for ix in rows])
