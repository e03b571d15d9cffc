"""Low-rank adapters whose change is counted from a start other than 0 (PiSSA, OLoRA), over the untouched weight.

    W + s (B A − B₀ A₀)  =  W + s [B − B₀, B₀] [A; A − A₀]

The right side is a low-rank change of rank 2r that is exactly 0, bit for bit, while A = A₀ and B = B₀; the left side,
a difference of two products, would only be near it.
"""

from typing import Any

import torch
from torch import Tensor

from featherweight.methods.lowrank import LowRank, LowRankConv, LowRankEmbedding


class Shifted(LowRank):
    """Mixin: A₀ and B₀ are the frozen buffers `origin_A` and `origin_B`, None where there is no such start."""

    origin_A: Tensor | None  # noqa: N815
    origin_B: Tensor | None  # noqa: N815

    def size(self, host: Any, rank: int) -> None:
        super().size(host, rank)
        self.register_buffer("origin_A", None)
        self.register_buffer("origin_B", None)

    def begin(self, A: Tensor, B: Tensor) -> None:
        """Start from these factors, given as matrices; the change is counted from here."""
        with torch.no_grad():
            self.A.copy_(A.reshape(self.A.shape))
            self.B.copy_(B.reshape(self.B.shape))
        self.origin_A, self.origin_B = self.A.detach().clone(), self.B.detach().clone()

    @property
    def rank(self) -> int:
        return super().rank * (1 if self.origin_A is None else 2)

    def factors(self) -> tuple[Tensor, Tensor]:
        A, B = super().factors()
        if self.origin_A is None or self.origin_B is None:
            return A, B
        return torch.cat([A, A - self.origin_A]), torch.cat([B - self.origin_B, self.origin_B], 1)


class ShiftedLinear(Shifted, LowRank):
    """An exact type of its own, so that no kernel that reads `lora_A` alone serves it."""


class ShiftedConv(Shifted, LowRankConv):
    """As `ShiftedLinear`."""


class ShiftedEmbedding(Shifted, LowRankEmbedding):
    """As `ShiftedLinear`."""
