"""Codecs over a code book: blocks scaled by their absmax, every element the nearest level.

    code = argmin_j |x / absmax - t_j|        x̂ = t_code · absmax

What NF4, FP4 and Blockwise share; each names its table (`codebooks.py`). Ties go to the lower value. Blocks are cut
from the flat tensor, row-major, and straddle rows. `double` quantizes the scales too (`double.py`), `clip` cuts
outliers first (`clip.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from featherweight.core.errors import Problem, raise_all
from featherweight.quant import clip as clipping
from featherweight.quant import codebooks, double, fields, integers, ops, packing
from featherweight.quant.blocks import PIECE, blocks, cut, per_block, pieces, rows_apart, spread
from featherweight.quant.scheme import Layout, Packed


@dataclass(frozen=True, repr=False)
class Coded:
    """`block` elements of the flat tensor share a scale."""

    block: int = 64
    double: bool = False
    clip: float | str | None = None

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the fields."""
        yield from fields.whole(self, "block")
        yield from fields.flag(self, "double")
        yield from clipping.problems(self)

    @property
    def codebook(self) -> str:
        """The name of the table."""
        raise NotImplementedError(f"{type(self).__name__} must name its table")

    @property
    def idempotent(self) -> bool:
        return self.clip in (None, "mse") and codebooks.idempotent(self.codebook)

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        flat, name = self.clipped(W), self.codebook
        block = min(self.block, flat.numel())
        table, fill = codebooks.searched(name, flat), codebooks.zero(name)
        codes, absmax = encode(flat, table, codebooks.bits(name), block, fill)
        return {"codes": codes} | (double.encode(absmax) if self.double else {"absmax": absmax})

    def clipped(self, W: Tensor) -> Tensor:
        """The flat weight with its range cut."""
        flat, plain = fields.weight(self, W), replace(self, double=False, clip=None)
        return clipping.clipped(flat, self.clip, min(self.block, flat.numel()), lambda b: replace(plain, block=b))  # type: ignore[arg-type, return-value]

    def scales(self, packed: Mapping[str, Tensor]) -> Tensor:
        """float32, one for each block."""
        if not self.double:
            return packed["absmax"]
        return double.decode(packed["absmax"], packed["nested_absmax"], packed["nested_offset"])

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        codes, name = packed["codes"], self.codebook
        table = codebooks.levels(name, codes)
        return decode(codes, self.scales(packed), table, codebooks.bits(name), self.block, shape, dtype)

    def product(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        codes, name = packed["codes"], self.codebook
        if codebooks.bits(name) != 4:
            return super().product(x, packed, shape, bias)  # type: ignore[misc]
        table, nested = codebooks.levels(name, codes), double.nested(packed) if self.double else ()
        return ops.linear4(x, codes, packed["absmax"], table, self.block, shape, bias, nested=nested)

    def adapted(
        self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None,
        A: Tensor, B: Tensor, c: float,
    ) -> Tensor:  # fmt: skip
        codes, name = packed["codes"], self.codebook
        if codebooks.bits(name) != 4:
            return super().adapted(x, packed, shape, bias, A, B, c)  # type: ignore[misc]
        table, nested = codebooks.levels(name, codes), double.nested(packed) if self.double else ()
        return ops.linear4(x, codes, packed["absmax"], table, self.block, shape, bias, A, B, c, nested)

    def rows(self, packed: Mapping[str, Tensor], shape: tuple[int, int], index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of Ŵ by number: these alone are decoded where each has bytes and scales of its own."""
        name = self.codebook
        bits = codebooks.bits(name)
        if not rows_apart(shape, self.block, bits):
            return self.decode(packed, shape, dtype)[index]
        codes = packed["codes"].view(shape[0], -1)[index].flatten()
        scales = self.scales(packed).view(shape[0], -1)[index].flatten()
        return decode(codes, scales, codebooks.levels(name, codes), bits, self.block, (len(index), shape[1]), dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        n = prod(shape)
        count = blocks(n, self.block)
        codes = (torch.uint8, (packing.size(n, codebooks.bits(self.codebook)),))
        return {"codes": codes} | (double.layout(count) if self.double else {"absmax": (torch.float32, (count,))})

    def bound(self, W: Tensor) -> Tensor:
        """Half the widest gap of the table; what clipping moved; with `double`, the scale's own error."""
        flat, clipped, n = fields.weight(self, W), self.clipped(W), W.numel()
        block = min(self.block, n)
        s = per_block(clipped, block, lambda b: b.abs().amax(1)).float()
        final = self.scales(double.encode(s)) if self.double else s
        off = (final - s).abs() + (codebooks.reach(self.codebook) + integers.ROUNDING) * s
        return (spread(off, block, n) + (flat.float() - clipped.float()).abs() + integers.SLACK).view(W.shape)


def encode(flat: Tensor, table: Tensor, bits: int, block: int, fill: int = 0) -> tuple[Tensor, Tensor]:
    """flat (n,), table (2^bits,) by code -> packed codes, float32 absmax of each block. NaN and ±inf show in these."""
    parts = [nearest(flat[a:b], table, bits, block) for a, b in whole_blocks(flat.numel(), block)]
    codes, absmax = (torch.cat(part) for part in zip(*parts, strict=True))
    return codes if bits == 4 else packing.pack(codes, bits, fill), absmax


def decode(
    codes: Tensor, scales: Tensor, table: Tensor, bits: int, block: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """The inverse: table[code] · scale in float32, then cast."""
    if bits == 4:
        return ops.decode4(codes, scales, table, block, shape, dtype)
    n = prod(shape)
    units = table[packing.unpack(codes, bits, n).int()]
    return (cut(units, block) * scales[:, None]).view(-1)[:n].to(dtype).view(shape)


def whole_blocks(n: int, block: int) -> Iterator[tuple[int, int]]:
    """Pieces of whole blocks, however large these are: the scale of a block is taken with its codes."""
    return pieces(n, block) if block * 8 <= PIECE else iter([(0, n)])


def nearest(flat: Tensor, table: Tensor, bits: int, block: int) -> tuple[Tensor, Tensor]:
    """Codes of one piece (4 bits: two to a byte) and the scales of its blocks."""
    if bits == 4:
        return ops.encode4(flat, table, block)
    rows = cut(flat.float(), block)
    absmax = rows.abs().amax(1)
    unit = rows / torch.where(absmax == 0, 1.0, absmax)[:, None]
    values, order = table.sort(stable=True)
    found = torch.bucketize(unit, (values[1:] + values[:-1]) / 2)
    return order.to(torch.uint8)[found].view(-1)[: flat.numel()], absmax
