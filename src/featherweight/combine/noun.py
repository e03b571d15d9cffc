"""How adapters are combined: a family of nouns, each an arithmetic of a list of tensors and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.core.errors import Problem
from featherweight.core.noun import Noun


@dataclass(frozen=True, repr=False)
class Combination(Noun):
    """Base of every way to combine. What is not of the shape of a weight's change is added up by its weights."""

    @property
    def to_rank(self) -> int | None:
        """The rank that changes of weights are brought to; None where LoRA's factors are combined themselves."""
        return getattr(self, "rank", None)

    @property
    def on_changes(self) -> bool:
        """Whether whole changes ΔW = s B A are combined, and not the factors A and B."""
        return self.to_rank is not None

    def problems(self) -> list[Problem]:
        """What is wrong with the fields."""
        wrong = []
        if self.to_rank is not None and self.to_rank < 1:
            wrong.append(Problem("rank out of range", "how.rank", "1 or more", str(self.to_rank)))
        density = getattr(self, "density", 1.0)
        if not 0 < density <= 1:
            wrong.append(Problem("density out of range", "how.density", "0 < density <= 1", str(density)))
        if getattr(self, "majority", "total") not in ("total", "frequency"):
            got = repr(getattr(self, "majority", ""))
            wrong.append(Problem("unknown majority", "how.majority", "total or frequency", got))
        return wrong

    def mix(self, tensors: Sequence[Tensor], weights: Sequence[float], chance: torch.Generator) -> Tensor:
        """One tensor out of several of one shape."""
        return weighted(tensors, weights)

    def factors(
        self, A: Sequence[Tensor], B: Sequence[Tensor], weights: Sequence[float], chance: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One pair of factors out of several of one rank.

        Each side takes the root of its weight, which so multiplies the product B A once; a sign goes to A.
        """
        roots = [abs(w) ** 0.5 for w in weights]
        signed = [r if w >= 0 else -r for r, w in zip(roots, weights, strict=True)]
        return self.mix(A, signed, chance), self.mix(B, roots, chance)


def weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w t."""
    return torch.stack([t * w for t, w in zip(tensors, weights, strict=True)]).sum(0)
