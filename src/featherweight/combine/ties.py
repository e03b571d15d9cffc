"""TIES: trim, elect a sign, merge what agrees with it.

    tᵢ = keep(ΔWᵢ)    γ = sign Σ tᵢ (total) or sign Σ sign tᵢ (frequency)    ΔW = Σ_{sign tᵢ = γ} wᵢ tᵢ / #{sign tᵢ = γ}

entry by entry; keep as in `prune.py`; a sum of 0 elects +.
Source: Yadav et al. 2023, "TIES-Merging", arXiv:2306.01708; weights enter after the election, as in PEFT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.combine.noun import Combination
from featherweight.combine.prune import largest


@dataclass(frozen=True, repr=False)
class TIES(Combination):
    """On LoRA's factors, or with a `rank` on whole changes (the paper's way, brought back to that rank)."""

    density: float = 0.2
    majority: str = "total"
    rank: int | None = None

    def mix(self, tensors: Sequence[Tensor], weights: Sequence[float], chance: torch.Generator) -> Tensor:
        return elected([largest(t, self.density) for t in tensors], weights, self.majority)


def elected(tensors: Sequence[Tensor], weights: Sequence[float], majority: str) -> Tensor:
    """The mean, entry by entry, of the weighted tensors whose sign is the elected one."""
    stacked = torch.stack(list(tensors))
    votes = stacked if majority == "total" else stacked.sign()
    sign = torch.where(votes.sum(0) >= 0, 1, -1)
    agree = stacked.sign() == sign
    kept = torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]) * agree
    return kept.sum(0) / agree.sum(0).clamp_min(1)
