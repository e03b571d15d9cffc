"""Sequence-level distillation: the student learns, as labels, what the teacher writes in answer to the same prompts.

    -log p_student(y | x),  y = the teacher's best answer to x (beam search; 1 beam is greedy)

The teacher writes anew whenever a row is seen, which costs as much as its generating: for more than an epoch or two let
it write the data once (`fw.generate(teacher, ...)`) and train on that.
Source: Kim and Rush 2016, arXiv:1606.07947.
"""

from dataclasses import dataclass
from typing import ClassVar

from featherweight.core.errors import Problem, raise_all
from featherweight.distill.recipes.recipe import Batch, Recipe, Term, View, Writers


@dataclass(frozen=True, repr=False)
class SequenceKD(Recipe):
    """Cross-entropy on the teacher's answers of at most `max_new_tokens` tokens, found with `beams` beams."""

    max_new_tokens: int = 128
    beams: int = 5

    softmax: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrong = [n for n in ("max_new_tokens", "beams") if getattr(self, n) < 1]
        raise_all(Problem("not a count", f"recipe.{n}", "at least 1", repr(getattr(self, n))) for n in wrong)

    def shown(self, batch: Batch, write: Writers) -> Batch:
        return write.teacher(batch, self.max_new_tokens, do_sample=False, num_beams=self.beams)

    def terms(self, view: View) -> dict[str, Term]:
        return {"label": Term(1.0, view.label())}
