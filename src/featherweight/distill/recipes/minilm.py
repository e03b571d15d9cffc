"""MiniLM: how the tokens of one layer relate, which has no width.

    version 1    KL of attention maps + KL of softmax(V Vᵀ / √d)
    version 2    KL of softmax(X Xᵀ / √d) for X in Q, K, V, cut into relation heads

Where a student has at most half the layers and half the width, version 1 goes by way of a teacher assistant: a student
of all layers and half the width is distilled first, and the small one from it. That is two runs of this recipe:

    assistant = fw.student(teacher, layers=12, width=384);  fw.distill(assistant, teacher, data, fw.MiniLM())
    student = fw.student(fw.merge(assistant), layers=6);    fw.distill(student, assistant, data, fw.MiniLM())

Sources: Wang et al. 2020, arXiv:2002.10957; Wang et al. 2021 (MiniLMv2), arXiv:2012.15828.
"""

from dataclasses import dataclass

from featherweight.core.errors import InputError, Problem
from featherweight.distill import losses
from featherweight.distill.attention import maps
from featherweight.distill.recipes.recipe import Recipe, Term, View


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
            return {r: Term(1.0, view.tokens(losses.relation_kl(s[r], t[r], heads, view.keys))) for r in s}
        both = maps(view.student, i, view.keys), maps(view.teacher, j, view.keys)
        value = losses.relation_kl(s["value"], t["value"], view.teacher.heads, view.keys)
        return {
            "attention": Term(1.0, view.tokens(losses.map_kl(*both, view.keys))),
            "value": Term(1.0, view.tokens(value)),
        }
