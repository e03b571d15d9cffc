"""Generalized knowledge distillation: the student is corrected on what it writes itself.

    (1-λ) E_data D_β(p, q) + λ E_{y ~ student} D_β(p, q)        p, q of teacher and student at temperature T
    D_β = β KL(p ‖ m) + (1-β) KL(q ‖ m),  m = β p + (1-β) q;  KL(p ‖ q) at β = 0, KL(q ‖ p) at β = 1

λ is the share of (micro-)batches whose answers the student writes: drawn from its distribution at T, without a gradient
through the drawing and with dropout off. A loss is a mean over each answer's tokens, and a row weighs what it does in
the data however much was written. D_β goes to 0 as β goes to 0 or 1, but is a KL there: β = 0.0001 gives a loss 10,000
times smaller than β = 0. There is no T², as in the paper and in trl; labels train nothing, and
with λ = 1 rows need no answers.
Source: Agarwal et al. 2023, arXiv:2306.13649; defaults are trl's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from featherweight.core.errors import Problem, raise_all
from featherweight.distill import losses
from featherweight.distill.recipes.recipe import Batch, Recipe, Term, View, Writers


@dataclass(frozen=True, repr=False)
class GKD(Recipe):
    """`on_policy` is λ, `beta` the mixture's share; `temperature` both draws the text and softens the loss."""

    on_policy: float = 0.5
    beta: float = 0.5
    temperature: float = 0.9
    max_new_tokens: int = 128

    softmax: ClassVar[bool] = True

    def __post_init__(self) -> None:
        shares = {f"recipe.{name}": getattr(self, name) for name in ("on_policy", "beta")}
        found = [Problem("no share", n, "a number from 0 to 1", repr(v)) for n, v in shares.items() if not 0 <= v <= 1]
        if not self.temperature > 0:
            found.append(Problem("no temperature", "recipe.temperature", "a number above 0", repr(self.temperature)))
        if self.max_new_tokens < 1:
            found.append(Problem("no room to write", "recipe.max_new_tokens", "at least 1", repr(self.max_new_tokens)))
        raise_all(found)

    @property
    def writes(self) -> bool:  # type: ignore[override]
        return self.on_policy > 0

    @property
    def answers(self) -> bool:  # type: ignore[override]
        return self.on_policy == 1

    def shown(self, batch: Batch, write: Writers) -> Batch:
        if not float(torch.rand(())) < self.on_policy:
            return batch
        return write.student(batch, self.max_new_tokens, do_sample=True, temperature=self.temperature)

    def terms(self, view: View) -> dict[str, Term]:
        return {"soft": Term(1.0, view.compared(losses.generalized_jsd, self.beta, self.temperature))}
