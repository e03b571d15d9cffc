"""Absmax: signed integers, zero on zero, the largest magnitude on the last code.

    s = max|x| / (2^(k-1) - 1)        q = round(x / s) in ±(2^(k-1) - 1)        x̂ = q s        |x - x̂| <= s/2

8 bits: ±127, |x - x̂| <= absmax/254; 4 bits: ±7, absmax/14. round goes half to even; -2^(k-1) stays unused.
`full_range` uses it: s = m / -2^(k-1) where m is the element of largest magnitude with its sign, q in [-2^(k-1),
2^(k-1) - 1]; an element near -m may then be off by a whole step.
`per`: one scale for the tensor, for each row (vector-wise: an output's weights), or for each block of so many elements
of the flat tensor. Bits a parameter: k + 32 / elements that share a scale: 8.5 in blocks of 64.
Source: Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339; blocks: Dettmers et al. 2022, arXiv:2110.02861; the signed
rule is GGUF's Q4_0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.core.errors import raise_all
from featherweight.quant import clip as clipping
from featherweight.quant import codebooks, fields, integers, ops
from featherweight.quant.activations import Activations
from featherweight.quant.blocks import blocks, elements, ends, rows_apart
from featherweight.quant.scheme import Layout, Packed, Scheme


@dataclass(frozen=True, repr=False)
class Absmax(Activations, Scheme):
    """`bits` 2 to 8; `per` "tensor", "row" or the elements of a block; `clip` None, a percentile of |w|, or "mse"."""

    paper: ClassVar[str] = "Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339"

    bits: int = 8
    per: int | str = "row"
    clip: float | str | None = None
    full_range: bool = False

    def __post_init__(self) -> None:
        mine = (
            fields.whole(self, "bits", 2, 8),
            fields.granularity(self),
            clipping.problems(self),
            self.activation_problems(),
        )
        raise_all(p for found in (*mine, fields.flag(self, "full_range")) for p in found)

    @property
    def low(self) -> int:
        """The code of the lowest value."""
        return -(2 ** (self.bits - 1))

    @property
    def idempotent(self) -> bool:
        return self.clip in (None, "mse")

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        shape = tuple(W.shape)
        flat, block = self.clipped(W), elements(self.per, shape)
        scales = self.scales(ends(flat, block))
        codes = integers.encode(flat, shape, block, self.bits, self.low, scales)
        return {"codes": codes, "scales": scales} | self.recorded(W, seen)

    def clipped(self, W: Tensor) -> Tensor:
        """The flat weight with its range cut."""
        flat, block = fields.weight(self, W), elements(self.per, tuple(W.shape))
        plain = replace(self, clip=None, activations=None)
        return clipping.clipped(flat, self.clip, block, lambda width: replace(plain, per=width))

    def scales(self, ends: Tensor) -> Tensor:
        """(2, blocks): least and greatest -> the steps."""
        least, greatest = ends
        if self.full_range:
            return torch.where(-least > greatest, least, greatest) / self.low
        return torch.maximum(-least, greatest) / (2 ** (self.bits - 1) - 1)

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        block = elements(self.per, shape)
        return integers.decode(packed["codes"], shape, dtype, block, self.bits, self.low, packed["scales"])

    def product(self, x: Tensor, packed: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None) -> Tensor:
        if self.activations is not None or self.bits not in (4, 8):
            return super().product(x, packed, shape, bias)
        codes, scales, block = packed["codes"], packed["scales"], elements(self.per, shape)
        if self.bits == 8:
            return ops.linear8(x, codes, scales, block, shape, bias)
        return ops.linear4(x, codes, scales, codebooks.levels(integers.NIBBLES, codes), block, shape, bias)

    def rows(self, packed: Mapping[str, Tensor], shape: tuple[int, int], index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of Ŵ by number: these alone are decoded where each has bytes and scales of its own."""
        block = elements(self.per, shape)
        if not rows_apart(shape, block, self.bits):
            return self.decode(packed, shape, dtype)[index]
        codes, scales = (packed[name].view(shape[0], -1)[index] for name in ("codes", "scales"))
        found, flat = (len(index), shape[1]), codes if self.bits == 8 else codes.flatten()
        return integers.decode(flat, found, dtype, block, self.bits, self.low, scales.view(-1))

    def layout(self, shape: tuple[int, ...]) -> Layout:
        groups = blocks(prod(shape), elements(self.per, shape))
        weight: Layout = {"codes": integers.stored(shape, self.bits), "scales": (torch.float32, (groups,))}
        return weight | self.recording()

    def bound(self, W: Tensor) -> Tensor:
        s = replace(self, activations=None).encode(W)["scales"]
        high = 2 ** (self.bits - 1) - 1
        low = self.low if self.full_range else -high
        least, most = torch.stack((low * s, high * s)).sort(0).values
        return integers.bound(W, self.clipped(W), elements(self.per, tuple(W.shape)), s, least, most)
