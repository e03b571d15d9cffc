"""Sums: of LoRA's factors, of whole changes, of logarithms.

    Linear      A = Σ ±√|wᵢsᵢ| Aᵢ,  B = Σ √|wᵢsᵢ| Bᵢ      one rank for all; only near Σ wᵢ ΔWᵢ (mixed terms Bᵢ Aⱼ)
    Cat         A = [w₁s₁A₁; w₂s₂A₂; …],  B = [B₁, B₂, …]    Σ wᵢ ΔWᵢ exactly, at the sum of the ranks
    SVD         B A = the best approximation of Σ wᵢ ΔWᵢ of rank r
    Geometric   l = Π lᵢ^wᵢ                                  scales ((IA)³, gains) added up as logarithms

with ΔWᵢ = sᵢ Bᵢ Aᵢ. Scales under Linear are Σ wᵢ lᵢ; replaced tensors (biases, norms, heads) are the base's plus
Σ wᵢ Δᵢ under all but Geometric.
Source: Ilharco et al. 2022, "Editing models with task arithmetic", arXiv:2212.04089; names and roots as in PEFT.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.combine.noun import Combination


@dataclass(frozen=True, repr=False)
class Linear(Combination):
    """Add the factors up. No fields."""


@dataclass(frozen=True, repr=False)
class Cat(Combination):
    """Put the factors side by side: exact. No fields."""

    def factors(
        self, A: Sequence[Tensor], B: Sequence[Tensor], weights: Sequence[float], chance: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return torch.cat([a * w for a, w in zip(A, weights, strict=True)]), torch.cat(list(B), 1)


@dataclass(frozen=True, repr=False)
class SVD(Combination):
    """Add the changes up and keep the best `rank` directions (None: the largest rank among the sources)."""

    rank: int | None = None

    @property
    def on_changes(self) -> bool:
        return True


@dataclass(frozen=True, repr=False)
class Geometric(Combination):
    """Multiply scales, each to the power of its weight. No fields."""
