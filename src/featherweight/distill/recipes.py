"""Recipes: which losses, with which weights, temperature and layers, as they were published.

    KD           (1-α) label + α T² KL(p ‖ q)                              Hinton, Vinyals and Dean 2015
    DistilBERT   5 T² KL(p ‖ q) + 2 label + 1 cosine of last states, T = 2 Sanh et al. 2019
    TinyBERT     stage "layers": embeddings, hidden states and attention scores of mapped layers;
                 stage "prediction": -Σ p log q                            Jiao et al. 2019
    MiniLM       last layer: attention maps and value relations (version 1, Wang et al. 2020);
                 relations of queries, keys and values (version 2, Wang et al. 2021)

A recipe is a noun; `terms` gives what it adds up, each before its weight, so that one that drowns the others is seen.
Values are one a unit (a row, a trained token) or one a token of each row, whose mean then stands for the row.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from featherweight.core.errors import InputError, Problem, did_you_mean
from featherweight.core.noun import Noun
from featherweight.distill import losses
from featherweight.distill.attention import maps, scores
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
        found = {"soft": Term(self.alpha, DIVERGENCES[self.divergence](self, *view.logits()))}
        return found | ({"label": Term(1 - self.alpha, view.label())} if self.alpha < 1 else {})


DIVERGENCES: dict[str, Callable[[KD, Tensor, Tensor], Tensor]] = {
    "kl": lambda r, s, t: losses.kl(s, t, r.temperature, r.squared),
    "reverse": lambda r, s, t: losses.reverse_kl(s, t, r.temperature, r.squared),
    "jsd": lambda r, s, t: losses.generalized_jsd(s, t, r.beta, r.temperature, r.squared),
}


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


STAGES = ("layers", "prediction")


@dataclass(frozen=True, repr=False)
class TinyBERT(Recipe):
    """Two stages, two runs: first "layers", then "prediction". For N = k M layers the student's block i follows the
    teacher's block i k + k - 1 (its states after the block, its attention scores in it); all weights are 1."""

    stage: str = "layers"
    temperature: float = 1.0

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

    def terms(self, view: View) -> dict[str, Term]:
        if self.stage == "prediction":
            return {"prediction": Term(1.0, losses.soft_cross_entropy(*view.logits(), self.temperature))}
        s, t = view.student, view.teacher
        found = {"embedding": Term(1.0, losses.state_mse(s.hidden[0], t.hidden[0]))}
        for i, j in zip(s.projected, t.projected, strict=True):
            found[f"hidden {i}"] = Term(1.0, losses.state_mse(s.hidden[i + 1], t.hidden[j + 1]))
            found[f"attention {i}"] = Term(1.0, losses.score_mse(scores(s, i), scores(t, j), view.keys))
        return found


@dataclass(frozen=True, repr=False)
class MiniLM(Recipe):
    """The last block alone. Version 1: KL of attention maps and of value relations, of equal head counts. Version 2: KL
    of the relations of queries, keys and values, cut into `heads` relation heads (0: the teacher's own number), for any
    width that divides by it. `layer` is the teacher's block (-1 the last; for large teachers an upper-middle one)."""

    version: int = 1
    heads: int = 0
    layer: int = -1

    @property
    def attention(self) -> bool:  # type: ignore[override]
        return self.version == 1

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise InputError(Problem("unknown version", "recipe.version", "1 or 2", repr(self.version)))

    def layers(self, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
        if not -teacher <= self.layer < teacher:
            raise InputError(Problem("no such block of the teacher", "recipe.layer", f"{-teacher} to {teacher - 1}",
                                     str(self.layer)))  # fmt: skip
        return ((student - 1, self.layer % teacher),)

    def terms(self, view: View) -> dict[str, Term]:
        (i, s), (j, t) = next(iter(view.student.projected.items())), next(iter(view.teacher.projected.items()))
        if self.version == 2:
            heads = self.heads or view.teacher.heads
            return {r: Term(1.0, losses.relation_kl(s[r], t[r], heads, view.keys)) for r in s}
        both = maps(view.student, i, view.keys), maps(view.teacher, j, view.keys)
        return {
            "attention": Term(1.0, losses.map_kl(*both, view.keys)),
            "value": Term(1.0, losses.relation_kl(s["value"], t["value"], view.teacher.heads, view.keys)),
        }
