"""Distillation as a task: its loss runs both models and adds up a recipe's terms; all else is the task's own.

So `fw.train` trains a student as it trains anything: seeds, resumption, checkpoints, any method.

    loss = Σ_terms w Σ_rows u_r · (mean over what the term compares in the row)      u_r units of row r

Every term counts each row by its units, so that accumulation, buckets and ranks change nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import Encoded, Example
from featherweight.distill.balance import gradient_norms, told
from featherweight.distill.pair import Pair, at_units
from featherweight.distill.posing import attended, own_loss, units_of, visible
from featherweight.distill.projection import lifting
from featherweight.distill.recipes import KD, Recipe, Term, View
from featherweight.distill.taps import Seen
from featherweight.distill.writing import writers
from featherweight.evaluate.setting import with_labels
from featherweight.tasks import Classification
from featherweight.tasks.task import Task
from featherweight.tasks.token_loss import IGNORED


@dataclass(frozen=True, repr=False)
class Distilled(Task):
    """`task` as a student learns it from a teacher by `recipe`; `teacher` says which weights teach, so that a run is
    not resumed with others. Made by `fw.distill`: the live teacher is in `pair`, which no file can hold."""

    task: Task = field(default_factory=Classification)
    recipe: Recipe = field(default_factory=KD)
    teacher: str = ""
    pair: Pair | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        # what a task's class says is here what the inner one's says
        for name in ("auto", "shapes", "best", "whole", "generates", "exclusive", "fills"):
            object.__setattr__(self, name, getattr(self.task, name))

    @property
    def served(self) -> Task:
        return self.task.served

    def changed(self) -> dict[str, Any]:
        return {name: value for name, value in super().changed().items() if name != "pair"}

    def begin(self, model: nn.Module, feed: Any, settings: Any, say: Callable[[str], None]) -> None:
        self.task.begin(model, feed, settings, say)
        if self.pair is None:
            return
        self.pair.teacher.to(next(model.parameters()).device)
        if self.pair.cache is not None:
            self.pair.cache = self.pair.cache.begin(self, model, feed, settings, say)
        if self.pair is not None:
            self.pair.say = say
        longest = max(len(row.input_ids) for row in feed.rows)
        if self.pair is not None and self.pair.context is not None:
            raise_all(self.pair.context.misfits(self.pair.teacher, longest))

    def fit(self, examples: Sequence[Example]) -> Self:
        """Rows without labels are learned from the teacher alone, which must say what its labels are."""
        if self.task.blank is None or any(e.label is not None for e in examples):
            return replace(self, task=self.task.fit(examples))
        known = self if self.pair is None else replace(self, task=with_labels(self.task, self.pair.teacher))
        if not known.task.model_options().get("num_labels"):
            raise InputError(Problem("neither rows nor teacher say what the labels are", examples[0].where,
                                     "a task with labels", repr(self.task), "set teacher.task"))  # fmt: skip
        raise_all(known.check(examples))
        return known

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return self.task.check(examples)

    def model_options(self) -> dict[str, Any]:
        return self.task.model_options()

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        rows = self.task.encode_all(examples, tokenizer, length)
        return [replace(row, labels=self.task.blank) if row.labels is None else row for row in rows]

    def ask(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.task.ask(examples, tokenizer, length)

    def predict(self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any) -> list[Any]:
        return self.task.predict(model, batch, tokenizer)

    def examine(
        self, model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any
    ) -> tuple[Tensor, Tensor, list[Any] | None]:
        """The task's own loss and predictions: dev scores of students are those of any model."""
        return self.task.examine(model, batch, tokenizer)

    def reference(self, example: Example) -> Any:
        return self.task.reference(example)

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return self.task.score(predictions, references)

    def answer(self, prediction: Any) -> dict[str, Any]:
        return self.task.answer(prediction)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.pair is None or self.pair.say is None:
            return self.summed(model, batch)
        say, self.pair.say = self.pair.say, None
        with self.pair.remembering():
            if norms := gradient_norms(self, model, batch):
                say(told(norms))
            return self.summed(model, batch)

    def summed(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The recipe's terms, weighted and summed over units, and the units."""
        found, view, units = self.terms(model, batch)
        total = view.student.logits.float().sum() * 0  # what the recipe does not reach gets a gradient of 0, not none
        for name, term in found.items():
            summed = (term.values * units).sum()
            total = total + term.weight * summed
            self.pair.note(name, term.weight, summed, units)  # type: ignore[union-attr]  # terms raises without one
        return total, units.sum()

    def noted(self) -> dict[str, Any]:
        """Each term of the last step before its weight, a mean a unit of this process, and times it."""
        return {} if self.pair is None else {"terms": self.pair.told()}

    def terms(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Term], View, Tensor]:
        """The recipe's terms, what they were read from, and the units of each row."""
        if self.pair is None:
            raise InputError(
                Problem("there is no teacher", "task", fix="call fw.distill(student, teacher, data, recipe)")
            )
        if "attention_mask" not in batch and (self.recipe.states or self.recipe.attention):
            raise InputError(Problem("packed rows hide where a row begins", "packing", fix="leave it out"))
        shown = self.recipe.shown(batch, writers(self.task, model, self.pair))
        given, targets = self.task.pose(model, shown)
        view = self.view(model, self.pair, shown, given, targets)
        if shown is not batch:  # a row weighs what it does in the data, however much was written
            targets = self.task.pose(model, batch)[1]
        return self.recipe.terms(view), view, units_of(targets, len(view.real), view.real.device)

    def view(self, model: nn.Module, pair: Pair, shown: Mapping[str, Tensor], given: dict[str, Tensor],
             targets: Tensor | None) -> View:  # fmt: skip
        """Both models on one batch."""
        real, asked = attended(shown), targets
        if self.recipe.everywhere and self.task.fills:
            asked = given["input_ids"].masked_fill(~real, IGNORED)
        mine, theirs = pair.looks(model, self.recipe)
        keys = visible(real, bool(mine.sites) and pair.one_way(model))
        if self.recipe.attention:
            pair.prove(given, keys, real)
        taught = pair.taught(theirs, given, asked)
        seen = mine(given)
        where = None if asked is None else asked != IGNORED
        logits, label = partial(chosen, pair, seen, taught, asked), partial(own_loss, self.task, seen, shown, targets)
        if seen.read:  # a decoder's tokens are its targets
            return View(seen, taught, logits, label, keys, real if where is None else where, where, real)
        return View(seen, taught, logits, label, keys, real, where, lift=lifting(model))


del Task.known["distilled"]  # it is made around a live teacher: no file and no flag can spell it


def chosen(pair: Pair, student: Seen, teacher: Seen, asked: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits (n, V) of both: each row's, or each asked position's."""
    return teacher.against(pair.cut(at_units(student.logits, asked)))
