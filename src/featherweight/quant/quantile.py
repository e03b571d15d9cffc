"""Quantile quantization: the levels are quantiles of the tensor itself, so that all codes are used about equally.

    u = x / absmax of its block        t_i = Q((i + ½) / 2^k), i = 0 ... 2^k - 1        x̂ = t_code · absmax

Q is the empirical quantile function of u, estimated by sorting (of at most 2^20 elements, evenly spaced over the
tensor). The table is stored beside the codes, 2^k float32: k + 32/B + 2^(k+5)/n bits a parameter, 4.5 for 4 bits in
blocks of 64. Sorting is slow and estimates of the tails are poor, |x - x̂| may reach the gap between the outermost level
and absmax: the reasons why NF4 fixes the distribution beforehand. 0 is exact in blocks of zeros only.
Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2 and appendix F.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.core.errors import raise_all
from featherweight.quant import clip as clipping
from featherweight.quant import coded, fields, integers, packing
from featherweight.quant.blocks import blocks, per_block, spread
from featherweight.quant.scheme import Layout, Packed, Scheme

SAMPLE = 1 << 20  # elements whose quantiles are taken


@dataclass(frozen=True, repr=False)
class Quantile(Scheme):
    """`bits` 2 to 8; `block` elements of the flat tensor share a scale; `clip` None, a percentile of |w|, or "mse"."""

    paper: ClassVar[str] = "Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861"

    bits: int = 4
    block: int = 64
    clip: float | str | None = None

    def __post_init__(self) -> None:
        raise_all([*fields.whole(self, "bits", 2, 8), *fields.whole(self, "block"), *clipping.problems(self)])

    @property
    def idempotent(self) -> bool:
        return False  # the quantiles of what was decoded are others

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        flat = self.clipped(W)
        block = min(self.block, flat.numel())
        table = self.quantiles(flat, block)
        codes, absmax = coded.encode(flat, table, self.bits, block)
        return {"codes": codes, "absmax": absmax, "table": table}

    def clipped(self, W: Tensor) -> Tensor:
        """The flat weight with its range cut; by least error every block tried has quantiles of its own."""
        flat, plain = fields.weight(self, W), replace(self, clip=None)
        return clipping.clipped(flat, self.clip, min(self.block, flat.numel()), lambda b: replace(plain, block=b))

    def quantiles(self, flat: Tensor, block: int) -> Tensor:
        """float32 (2^k,), rising. NaN and infinity do not count."""
        absmax = per_block(flat, block, lambda b: b.abs().amax(1)).float()
        at = torch.arange(0, flat.numel(), -(-flat.numel() // SAMPLE), device=flat.device)
        unit = flat[at].float() / absmax[at // block]
        unit = unit[unit.isfinite()].sort().values
        if not unit.numel():
            unit = torch.zeros(1, device=flat.device)
        middles = (torch.arange(2**self.bits, device=flat.device) + 0.5) / 2**self.bits
        return unit[(middles * unit.numel()).long().clamp_max(unit.numel() - 1)]

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return coded.decode(packed["codes"], packed["absmax"], packed["table"], self.bits, self.block, shape, dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        n = prod(shape)
        return {
            "codes": (torch.uint8, (packing.size(n, self.bits),)),
            "absmax": (torch.float32, (blocks(n, self.block),)),
            "table": (torch.float32, (2**self.bits,)),
        }

    def bound(self, W: Tensor) -> Tensor:
        flat, whole = self.clipped(W), fields.weight(self, W)
        block = min(self.block, flat.numel())
        absmax, table = per_block(flat, block, lambda b: b.abs().amax(1)).float(), self.quantiles(flat, block)
        gaps = torch.cat(((table[1:] - table[:-1]) / 2, table[:1] + 1, 1 - table[-1:]))
        worst = (gaps.max() + integers.ROUNDING) * absmax + integers.SLACK
        return (spread(worst, block, flat.numel()) + (whole.float() - flat.float()).abs()).view(W.shape)
