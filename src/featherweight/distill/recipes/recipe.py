"""The contract of a recipe: a noun whose `terms` gives what it adds up, each before its weight, so that one that drowns
the others is seen. Values are one a unit (a row, a trained token) or one a token of each row, whose mean then stands
for the row.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from featherweight.core.noun import Noun
from featherweight.distill.taps import Seen


@dataclass(frozen=True, eq=False)
class View:
    """A batch as student and teacher see it. `logits` of both (units, V) and `label`, the task's own loss a unit, are
    functions: not every recipe asks. `keys` (b, 1 or s, s) is True where a query may look."""

    student: Seen
    teacher: Seen
    logits: Callable[[], tuple[Tensor, Tensor]]
    label: Callable[[], Tensor]
    keys: Tensor


class Term(NamedTuple):
    """One loss: values (units) or (batch, seq)."""

    weight: float
    values: Tensor


@dataclass(frozen=True, repr=False)
class Recipe(Noun):
    """Base of every recipe."""

    softmax: ClassVar[bool] = False  # compares distributions over labels or words
    states: ClassVar[bool] = False  # compares hidden states: the widths must be equal
    attention: ClassVar[bool] = False  # compares attention maps: the head counts must be equal

    def layers(self, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
        """Pairs of blocks (the student's, the teacher's) whose projections are compared, for so many blocks."""
        return ()

    @abstractmethod
    def terms(self, view: View) -> dict[str, Term]:
        """What is added up, by name."""
