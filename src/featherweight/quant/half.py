"""Half precision: 16 bits, rounded to nearest; the format that all others are measured against.

    bf16    8 exponent bits, 7 of fraction    |x - x̂| <= |x| 2^-8     range of float32
    fp16    5 exponent bits, 10 of fraction   |x - x̂| <= |x| 2^-11    to 65504, steps of 2^-24 below 2^-14

16 bits a parameter. A finite weight beyond 65504 would become inf in fp16: an error instead.
Source: IEEE 754-2019; bfloat16: Kalamkar et al. 2019, arXiv:1905.12322.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.quant import fields
from featherweight.quant.scheme import Layout, Packed, Scheme

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, repr=False)
class Half(Scheme):
    """`dtype` is "bf16" or "fp16"."""

    paper: ClassVar[str] = "Kalamkar et al. 2019, A Study of BFLOAT16, arXiv:1905.12322"

    dtype: str = "bf16"

    def __post_init__(self) -> None:
        raise_all(fields.choice(self, "dtype", DTYPES))

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        values = fields.weight(self, W).view(W.shape).to(DTYPES[self.dtype])
        lost = values.isinf().sum() - W.isinf().sum()
        if lost:
            fix = 'use Half("bf16"), which has the range of float32' if self.dtype == "fp16" else "scale it down first"
            got = f"{int(lost)} of {W.numel()} beyond it, the largest {W[W.isfinite()].abs().max():.4g}"
            limit = f"at most {torch.finfo(values.dtype).max:.5g}"
            raise InputError(Problem("finite weights would become infinite", f"Half({self.dtype!r})", limit, got, fix))
        return {"values": values}

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return packed["values"].to(dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {"values": (DTYPES[self.dtype], shape)}

    def bound(self, W: Tensor) -> Tensor:
        info = torch.finfo(DTYPES[self.dtype])
        return W.detach().float().abs() * (info.eps / 2) + info.smallest_normal * info.eps / 2
