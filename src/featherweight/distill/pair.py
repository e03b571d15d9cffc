"""The two live models of a distillation and how each is looked at; made once for a student.

The teacher is a model of its own, or the student's own model with other adapters on (`names`; none of them: the bare
base): then nothing is in memory twice, and each of its forwards switches them on and back.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import find_blocks
from featherweight.core.errors import InputError, Problem
from featherweight.core.switch import switch
from featherweight.distill.attention import causal, prove
from featherweight.distill.context import Edit
from featherweight.distill.recipes import Recipe
from featherweight.distill.taps import Seen, Tap
from featherweight.tasks.modes import evaluating
from featherweight.tasks.token_loss import IGNORED


@dataclass(eq=False)
class Pair:
    """`words`, where given, is how many tokens both know: their logits are cut to them. `context` is what the teacher
    alone reads. Never kept in a file."""

    teacher: nn.Module
    names: tuple[str, ...] | None = None
    context: Edit | None = None
    words: int | None = None
    student: nn.Module | None = None
    taps: tuple[Tap, Tap] | None = None
    proven: bool = False
    causal: bool | None = None
    say: Callable[[str], None] | None = None  # until the first step has told what there is to tell
    memory: list[tuple[Mapping[str, Tensor], Seen]] | None = None  # the last batch, while it is remembered
    notes: dict[str, list[float]] = field(default_factory=dict)
    cache: Any = None  # a TeacherCache: once the run has begun, live

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """The teacher as it teaches."""
        if self.names is None:
            yield
            return
        with switch(self.teacher, self.names), evaluating(self.teacher):
            yield

    def taught(self, tap: Tap, given: Mapping[str, Tensor], targets: Tensor | None) -> Seen:
        """What the teacher shows of a batch, its logits those of the units: kept, or computed."""
        if self.memory and same(given, self.memory[0][0]):
            return self.memory[0][1]
        seen = self.computed(tap, given, targets)
        if self.memory is not None:
            self.memory[:] = [(given, seen)]
        return seen

    def computed(self, tap: Tap, given: Mapping[str, Tensor], targets: Tensor | None) -> Seen:
        if self.cache is not None:
            return self.cache.taught(tap, given, targets)
        with torch.no_grad():
            seen = tap(given)
        return replace(seen, logits=at_units(seen.logits, targets))

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While one batch is looked at several times: the teacher looks once."""
        self.memory = []
        try:
            yield
        finally:
            self.memory = None

    def note(self, name: str, weight: float, summed: Tensor, units: Tensor) -> None:
        """Add a term of one micro-batch to what is known of the step."""
        now = self.notes.setdefault(name, [weight, 0.0, 0.0])
        now[1], now[2] = now[1] + float(summed.detach()), now[2] + float(units.sum())

    def told(self) -> dict[str, dict[str, float]]:
        """What was noted since it was last told: each term's mean before its weight, and times it."""
        means = {name: (w, s / max(n, 1.0)) for name, (w, s, n) in self.notes.items()}
        self.notes = {}
        return {name: {"raw": mean, "weighted": w * mean} for name, (w, mean) in means.items()}

    def one_way(self, student: nn.Module) -> bool:
        """Whether tokens see only those before them: found out once. Raises InputError where the two differ."""
        if self.causal is None:
            both = [causal(m) for m in (student, self.teacher)]
            if both[0] != both[1]:
                said = ["causal" if one else "bidirectional" for one in both]
                raise InputError(Problem("attention goes another way", "student", said[1], said[0], "KD takes logits"))
            self.causal = both[0]
        return self.causal

    def looks(self, student: nn.Module, recipe: Recipe) -> tuple[Tap, Tap]:
        """How the student is looked at, and how the teacher."""
        if self.taps is None or self.student is not student:
            mine, theirs = (len(find_blocks(m)) for m in (student, self.teacher))
            self.teacher.to(next(student.parameters()).device)
            layers, states, maps = recipe.layers(mine, theirs), recipe.states, recipe.attention
            self.taps = (
                Tap(student, states, [i for i, _ in layers], maps),
                Tap(self.teacher, states, [j for _, j in layers], maps, self.words, self.context, self.teaching),
            )
            self.student, self.proven, self.causal = student, False, None
        return self.taps

    def prove(self, given: Mapping[str, Tensor], keys: Tensor, mask: Tensor) -> None:
        """Raise InputError unless attention maps of both models are their own; asked once."""
        if not self.proven:
            assert self.taps is not None
            for tap, whose in zip(self.taps, ("student", "teacher"), strict=True):
                prove(tap, given, keys, mask, whose)
            self.proven = True

    def cut(self, logits: Tensor) -> Tensor:
        """The student's logits over the tokens that both know."""
        return logits if self.words is None else logits[..., : self.words]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def at_units(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Logits as they are where a unit is a row, else those of the positions with a target."""
    return logits if targets is None else logits[targets != IGNORED]
