"""TinyBERT: the teacher's layers first, then its predictions.

    layers       MSE(E_s, E_t) + Σ_m MSE(H_s,m, H_t,g(m)) + MSE(S_s,m, S_t,g(m))     g(m) = m N / M, S before softmax
    prediction   -Σ p log q

Source: Jiao et al. 2019, arXiv:1909.10351, and its published code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.distill import losses
from featherweight.distill.attention import scores
from featherweight.distill.recipes.recipe import Recipe, Term, View

STAGES = ("layers", "prediction")


@dataclass(frozen=True, repr=False)
class TinyBERT(Recipe):
    """Two stages, two runs: first "layers", then "prediction". For N = k M layers the student's block i follows the
    teacher's block i k + k - 1 (its states after the block, its attention scores in it); all weights are 1."""

    stage: str = "layers"
    temperature: float = 1.0

    stages: ClassVar[tuple[Mapping[str, Any], ...]] = ({"stage": "layers"}, {"stage": "prediction"})

    @property
    def softmax(self) -> bool:  # type: ignore[override]
        return self.stage == "prediction"

    @property
    def states(self) -> bool:  # type: ignore[override]
        return self.stage == "layers"

    attention = states

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            fix = did_you_mean(self.stage, STAGES)
            raise InputError(Problem("unknown stage", "recipe.stage", got=repr(self.stage), fix=fix))

    def layers(self, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
        if self.stage == "prediction":
            return ()
        if teacher % student:
            fix = f"a student whose layers divide {teacher}, or MiniLM, which compares the last ones"
            raise InputError(Problem("TinyBERT's layer map needs whole groups", "student", f"a divisor of {teacher}",
                                     f"{student} layers", fix))  # fmt: skip
        k = teacher // student
        return tuple((i, i * k + k - 1) for i in range(student))

    def lifted(self, student: int) -> tuple[int, ...]:
        return tuple(range(student + 1)) if self.states else ()

    def terms(self, view: View) -> dict[str, Term]:
        if self.stage == "prediction":
            return {"prediction": Term(1.0, view.compared(losses.soft_cross_entropy, self.temperature))}
        s, t = view.student, view.teacher

        def states(i: int, j: int) -> Term:
            return Term(1.0, view.tokens(losses.state_mse(view.lift(i, s.hidden[i]), t.hidden[j])))

        found = {"embedding": states(0, 0)}
        for i, j in zip(s.projected, t.projected, strict=True):
            maps = losses.score_mse(scores(s, i), scores(t, j), view.keys)
            found |= {f"hidden {i}": states(i + 1, j + 1), f"attention {i}": Term(1.0, view.tokens(maps))}
        return found
