"""Prune each change by magnitude, then add.

ΔW = Σ wᵢ keep(ΔWᵢ)          keep: the ⌊density · n⌋ entries of largest magnitude, the rest 0
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.combine.noun import Combination, weighted


@dataclass(frozen=True, repr=False)
class MagnitudePrune(Combination):
    """On LoRA's factors, or with a `rank` on whole changes."""

    density: float = 0.2
    rank: int | None = None

    def mix(self, tensors: Sequence[Tensor], weights: Sequence[float], chance: torch.Generator) -> Tensor:
        return weighted([largest(t, self.density) for t in tensors], weights)


def largest(t: Tensor, density: float) -> Tensor:
    """Keep the entries of largest magnitude."""
    if density == 1:
        return t
    kept = torch.zeros(t.numel(), dtype=torch.bool, device=t.device)
    kept[t.abs().flatten().topk(int(density * t.numel())).indices] = True
    return t * kept.view(t.shape)
