"""Knowledge distillation: the teacher's softened distribution beside the labels.

    (1-α) label + α T² D(p, q)        p, q of teacher and student at temperature T; D a divergence, by default KL(p ‖ q)

Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.distill import losses
from featherweight.distill.recipes.recipe import Recipe, Term, View


@dataclass(frozen=True, repr=False)
class KD(Recipe):
    """(1-α) label + α T² D: D is "kl" (the teacher's modes all covered), "reverse" or "jsd" (with `beta`).
    `squared=False` leaves T² out."""

    temperature: float = 2.0
    alpha: float = 0.5
    divergence: str = "kl"
    beta: float = 0.5
    squared: bool = True

    softmax: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            fix = did_you_mean(self.divergence, DIVERGENCES)
            raise InputError(Problem("unknown divergence", "recipe.divergence", got=repr(self.divergence), fix=fix))
        if not 0 <= self.alpha <= 1:
            raise InputError(Problem("no share", "recipe.alpha", "a number from 0 to 1", repr(self.alpha)))

    def terms(self, view: View) -> dict[str, Term]:
        found = {"soft": Term(self.alpha, view.compared(partial(DIVERGENCES[self.divergence], self)))}
        return found | ({"label": Term(1 - self.alpha, view.label())} if self.alpha < 1 else {})


DIVERGENCES: dict[str, Callable[[KD, Tensor, Tensor], Tensor]] = {
    "kl": lambda r, s, t: losses.kl(s, t, r.temperature, r.squared),
    "reverse": lambda r, s, t: losses.reverse_kl(s, t, r.temperature, r.squared),
    "jsd": lambda r, s, t: losses.generalized_jsd(s, t, r.beta, r.temperature, r.squared),
}
