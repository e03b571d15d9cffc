"""Zero-point: the range from least to greatest on all 2^k codes, with 0 on a code of its own.

    s = (max - min) / (2^k - 1)        z = ⌊½ - min / s⌋        q = clamp(round(x / s + z), 0, 2^k - 1)
    x̂ = (q - z) s                      |x - x̂| <= s/2             min <= 0 <= max

The range is widened to hold 0, so that 0 is exact. Codes of 8 bits, and their z, are kept less 128 as int8.
`zero="float"` keeps the minimum itself, in float32, and widens nothing: q = round((x - min) / s), x̂ = q s + min. It
has the least error of the 4-bit integers and no exact 0.
Bits a parameter: k + (32 + k) / elements that share a scale (4.5625 for 4 bits in blocks of 64); float zero k + 64/B.
Source: Jacob et al. 2017, arXiv:1712.05877; as in Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.core.errors import raise_all
from featherweight.quant import clip as clipping
from featherweight.quant import fields, integers, packing
from featherweight.quant.activations import Activations
from featherweight.quant.blocks import blocks, elements, ends
from featherweight.quant.scheme import Layout, Packed, Scheme


@dataclass(frozen=True, repr=False)
class ZeroPoint(Activations, Scheme):
    """`bits` 2 to 8; `per` "tensor", "row" or the elements of a block; `zero` "integer" or "float"; `clip`."""

    paper: ClassVar[str] = "Jacob et al. 2017, Integer-Arithmetic-Only Inference, arXiv:1712.05877"

    bits: int = 8
    per: int | str = "row"
    clip: float | str | None = None
    zero: str = "integer"

    symmetric: ClassVar[bool] = False  # the grid of activations

    def __post_init__(self) -> None:
        mine = (
            fields.whole(self, "bits", 2, 8),
            fields.granularity(self),
            clipping.problems(self),
            self.activation_problems(),
        )
        raise_all(p for found in (*mine, fields.choice(self, "zero", ("integer", "float"))) for p in found)

    @property
    def low(self) -> int:
        """The code of the lowest value."""
        return -128 if self.bits == 8 else 0

    @property
    def idempotent(self) -> bool:
        return self.clip in (None, "mse")

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        shape = tuple(W.shape)
        flat, block = self.clipped(W), elements(self.per, shape)
        least, greatest = ends(flat, block)
        if self.zero == "integer":
            least, greatest = least.clamp_max(0), greatest.clamp_min(0)
        steps = 2**self.bits - 1
        scales = step(least, greatest, steps)
        if self.zero == "float":
            codes = integers.encode(flat, shape, block, self.bits, self.low, scales, self.origin(scales), least)
            return {"codes": codes, "scales": scales, "minimum": least}
        zeros = (0.5 - least / torch.where(scales == 0, 1.0, scales)).floor_().nan_to_num_(0.0).clamp_(0, steps)
        zeros = zeros + self.low
        codes = integers.encode(flat, shape, block, self.bits, self.low, scales, zeros)
        return {"codes": codes, "scales": scales, "zeros": self.keep(zeros)} | self.recorded(W, seen)

    def clipped(self, W: Tensor) -> Tensor:
        """The flat weight with its range cut."""
        flat, block = fields.weight(self, W), elements(self.per, tuple(W.shape))
        plain = replace(self, clip=None, activations=None)
        return clipping.clipped(flat, self.clip, block, lambda width: replace(plain, per=width), symmetric=False)

    def origin(self, like: Tensor) -> Tensor:
        """The zero points of the float variant: the lowest code, everywhere."""
        return torch.full_like(like, self.low)

    def keep(self, zeros: Tensor) -> Tensor:
        """float32 (blocks,) -> as stored."""
        return zeros.to(torch.int8) if self.bits == 8 else packing.pack(zeros.to(torch.uint8), self.bits)

    def grid(self, packed: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scales, zero points in float32 and base of each block."""
        scales = packed["scales"]
        if self.zero == "float":
            return scales, self.origin(scales), packed["minimum"]
        zeros = packed["zeros"]
        return scales, (zeros if self.bits == 8 else packing.unpack(zeros, self.bits, scales.numel())).float(), None

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        block = elements(self.per, shape)
        return integers.decode(packed["codes"], shape, dtype, block, self.bits, self.low, *self.grid(packed))

    def layout(self, shape: tuple[int, ...]) -> Layout:
        groups = blocks(prod(shape), elements(self.per, shape))
        layout: Layout = {"codes": integers.stored(shape, self.bits), "scales": (torch.float32, (groups,))}
        if self.zero == "float":
            return layout | {"minimum": (torch.float32, (groups,))}
        return layout | {"zeros": integers.stored((groups,), self.bits)} | self.recording()

    def bound(self, W: Tensor) -> Tensor:
        scales, zeros, base = self.grid(replace(self, activations=None).encode(W))
        origin = torch.zeros_like(scales) if base is None else base
        least, most = (origin + (end - zeros) * scales for end in (self.low, self.low + 2**self.bits - 1))
        return integers.bound(W, self.clipped(W), elements(self.per, tuple(W.shape)), scales, least, most)


def step(least: Tensor, greatest: Tensor, steps: int) -> Tensor:
    """float32, rounded down: rounded up, a range that is symmetric about 0 would leave the highest code unused."""
    width = greatest.double() - least.double()
    scales = (width / steps).float()
    return torch.where(scales.double() * steps > width, torch.nextafter(scales, torch.zeros_like(scales)), scales)
