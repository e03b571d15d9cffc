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
from featherweight.quant import fields, integers
from featherweight.quant.blocks import blocks, elements, ends
from featherweight.quant.scheme import Layout, Packed, Scheme


@dataclass(frozen=True, repr=False)
class Absmax(Scheme):
    """`bits` 2 to 8; `per` "tensor", "row" or the elements of a block; `clip` None, a percentile of |w|, or "mse"."""

    paper: ClassVar[str] = "Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339"

    bits: int = 8
    per: int | str = "row"
    clip: float | str | None = None
    full_range: bool = False

    def __post_init__(self) -> None:
        mine = (fields.whole(self, "bits", 2, 8), fields.granularity(self), clipping.problems(self))
        raise_all(p for found in (*mine, fields.flag(self, "full_range")) for p in found)

    @property
    def low(self) -> int:
        """The code of the lowest value."""
        return -(2 ** (self.bits - 1))

    @property
    def idempotent(self) -> bool:
        return self.clip in (None, "mse")

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        shape, flat = tuple(W.shape), fields.weight(self, W)
        block = elements(self.per, shape)
        flat = clipping.clipped(flat, self.clip, block, lambda width: replace(self, per=width, clip=None))
        scales = self.scales(ends(flat, block))
        return {"codes": integers.encode(flat, shape, block, self.bits, self.low, scales), "scales": scales}

    def scales(self, ends: Tensor) -> Tensor:
        """(2, blocks): least and greatest -> the steps."""
        least, greatest = ends
        if self.full_range:
            return torch.where(-least > greatest, least, greatest) / self.low
        return torch.maximum(-least, greatest) / (2 ** (self.bits - 1) - 1)

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        block = elements(self.per, shape)
        return integers.decode(packed["codes"], shape, dtype, block, self.bits, self.low, packed["scales"])

    def layout(self, shape: tuple[int, ...]) -> Layout:
        groups = blocks(prod(shape), elements(self.per, shape))
        return {"codes": integers.stored(shape, self.bits), "scales": (torch.float32, (groups,))}

    def bound(self, W: Tensor) -> Tensor:
        s = self.encode(W)["scales"]
        high = 2 ** (self.bits - 1) - 1
        low = self.low if self.full_range else -high
        least, most = torch.stack((low * s, high * s)).sort(0).values
        return integers.bound(W, elements(self.per, tuple(W.shape)), s, least, most)
