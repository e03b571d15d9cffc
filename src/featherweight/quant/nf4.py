"""NF4: sixteen levels at the quantiles of N(0, 1), scaled by the absmax of each block.

code = argmin_j |x / absmax - q_j|        Ŵ = q_code · absmax        block 64, 4.5 bits a parameter
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from featherweight.quant import ops
from featherweight.quant.scheme import Layout, Packed, Scheme

# fmt: off
NF4_TABLE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


@dataclass(frozen=True, repr=False)
class NF4(Scheme):
    """`block` elements of the flat tensor share one scale."""

    paper: ClassVar[str] = "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"

    block: int = 64

    def encode(self, W: Tensor, seen: Any = None) -> Packed:
        codes, absmax = ops.encode4(W, torch.tensor(NF4_TABLE), self.block)
        return {"codes": codes, "absmax": absmax}

    def decode(self, packed: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return ops.decode4(packed["codes"], packed["absmax"], torch.tensor(NF4_TABLE), self.block, shape, dtype)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        n = prod(shape)
        return {"codes": (torch.uint8, (ceil(n / 2),)), "absmax": (torch.float32, (ceil(n / self.block),))}
