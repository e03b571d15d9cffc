"""DistilBERT: 5 T² KL(p ‖ q) + 2 label + 1 (1 - cos of the last hidden states), T = 2.

As published the task is masked language modelling: the label's loss is that of the hidden tokens, the KL and the cosine
are means over all attended ones (their code has a flag for the hidden ones alone, as here). Over any other task the
label is the task's own. A student narrower than its teacher learns a projection for the cosine.
Source: Sanh et al. 2019, arXiv:1910.01108, and its published code.
"""

from dataclasses import dataclass
from typing import ClassVar

from featherweight.distill import losses
from featherweight.distill.losses import row_mean
from featherweight.distill.recipes.recipe import Recipe, Term, View


@dataclass(frozen=True, repr=False)
class DistilBERT(Recipe):
    """5 T² KL + 2 label + 1 cosine of the last hidden states, T = 2; the label's loss is the task's. `hidden_only`
    compares logits at the hidden tokens of masked language modelling alone. Of an encoder and a decoder the cosine is
    the mean of both."""

    soft: float = 5.0
    label: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0
    hidden_only: bool = False

    softmax: ClassVar[bool] = True
    states: ClassVar[bool] = True

    @property
    def everywhere(self) -> bool:  # type: ignore[override]
        return not self.hidden_only

    def lifted(self, student: int) -> tuple[int, ...]:
        return (student,)

    def terms(self, view: View) -> dict[str, Term]:
        s, t = view.student, view.teacher
        last = view.lift(len(s.hidden) - 1, s.hidden[-1])
        cosine = view.tokens(losses.state_cosine(last, t.hidden[-1]))
        if view.read is not None:
            cosine = (cosine + row_mean(losses.state_cosine(s.read[-1], t.read[-1]), view.read)) / 2
        return {
            "soft": Term(self.soft, view.compared(losses.kl, self.temperature)),
            "label": Term(self.label, view.label()),
            "cosine": Term(self.cosine, cosine),
        }
