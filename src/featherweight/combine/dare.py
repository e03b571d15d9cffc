"""DARE: drop entries at random and rescale, then add or elect.

    tᵢ = mᵢ ⊙ ΔWᵢ / density,  mᵢ ~ Bernoulli(density)        ΔW = Σ wᵢ tᵢ,  or TIES' election among the tᵢ

The expected value stays. Drawn from `seed`, tensor after tensor in the model's order.
Source: Yu et al. 2023, "Language models are super mario", arXiv:2311.03099.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.combine.noun import Combination, weighted
from featherweight.combine.ties import elected


@dataclass(frozen=True, repr=False)
class DARE(Combination):
    """`ties=True` elects signs after dropping. On LoRA's factors, or with a `rank` on whole changes."""

    density: float = 0.2
    seed: int = 0
    ties: bool = False
    majority: str = "total"
    rank: int | None = None

    def mix(self, tensors: Sequence[Tensor], weights: Sequence[float], chance: torch.Generator) -> Tensor:
        kept = [thinned(t, self.density, chance) for t in tensors]
        return elected(kept, weights, self.majority) if self.ties else weighted(kept, weights)


def thinned(t: Tensor, density: float, chance: torch.Generator) -> Tensor:
    """Each entry with probability `density`, over it; else 0."""
    if density == 1:
        return t
    kept = torch.bernoulli(torch.full(t.shape, density, dtype=t.dtype), generator=chance)
    return t * kept.to(t.device) / density
