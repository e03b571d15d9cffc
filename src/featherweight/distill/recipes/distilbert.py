"""DistilBERT: 5 T² KL(p ‖ q) + 2 label + 1 (1 - cos of the last hidden states), T = 2.

Source: Sanh et al. 2019, arXiv:1910.01108, and its published code.
"""

from dataclasses import dataclass
from typing import ClassVar

from featherweight.distill import losses
from featherweight.distill.recipes.recipe import Recipe, Term, View


@dataclass(frozen=True, repr=False)
class DistilBERT(Recipe):
    """5 T² KL + 2 label + 1 cosine of the last hidden states, T = 2; the label's loss is the task's."""

    soft: float = 5.0
    label: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0

    softmax: ClassVar[bool] = True
    states: ClassVar[bool] = True

    def terms(self, view: View) -> dict[str, Term]:
        last = losses.state_cosine(view.student.hidden[-1], view.teacher.hidden[-1])
        return {
            "soft": Term(self.soft, losses.kl(*view.logits(), self.temperature)),
            "label": Term(self.label, view.label()),
            "cosine": Term(self.cosine, last),
        }
