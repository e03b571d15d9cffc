"""Distillation as a task: its loss runs both models and adds up a recipe's terms; all else is the task's own.

So `fw.train` trains a student as it trains anything: seeds, resumption, checkpoints, any method.

    loss = Σ_terms w Σ_rows u_r · (mean over the row's tokens, or over its units)      u_r units of row r

A term over tokens counts each row by its units, so that accumulation, buckets and ranks change nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from featherweight.core.anatomy import find_blocks
from featherweight.core.errors import InputError, Problem
from featherweight.data.types import Encoded, Example
from featherweight.distill.attention import causal, prove
from featherweight.distill.losses import row_mean
from featherweight.distill.recipes import KD, Recipe, Term, View
from featherweight.distill.taps import Seen, Tap
from featherweight.tasks import CausalLM, Classification, Seq2Seq
from featherweight.tasks.heads import Headed, inputs
from featherweight.tasks.modes import inner
from featherweight.tasks.task import Task
from featherweight.tasks.token_loss import IGNORED


@dataclass(eq=False)
class Pair:
    """Two live models and how they are looked at; made once for a student."""

    teacher: nn.Module
    student: nn.Module | None = None
    taps: tuple[Tap, Tap] | None = None
    proven: bool = False
    causal: bool | None = None
    cache: Any = None  # a TeacherCache: once the run has begun, live

    def taught(self, tap: Tap, given: Mapping[str, Tensor], targets: Tensor | None) -> Seen:
        """What the teacher shows of a batch, its logits those of the units: kept, or computed."""
        if self.cache is not None:
            return self.cache.taught(tap, given, targets)
        with torch.no_grad():
            seen = tap(given)
        return replace(seen, logits=at_units(seen.logits, targets))

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
        if self.taps is None or self.student is not student:
            mine, theirs = (len(find_blocks(m)) for m in (student, self.teacher))
            layers, states = recipe.layers(mine, theirs), recipe.states
            self.taps = (
                Tap(student, states, [i for i, _ in layers]),
                Tap(self.teacher, states, [j for _, j in layers]),
            )
            self.student, self.proven, self.causal = student, False, None
        return self.taps


@dataclass(frozen=True, repr=False)
class Distilled(Task):
    """`task` as a student learns it from a teacher by `recipe`; `teacher` says which weights teach, so that a run is
    not resumed with others. Made by `fw.distill`: the live teacher is in `pair`, which no file can hold."""

    task: Task = field(default_factory=Classification)
    recipe: Recipe = field(default_factory=KD)
    teacher: str = ""
    pair: Pair | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("auto", "shapes", "best", "generates"):  # what a task's class says is here the inner task's
            object.__setattr__(self, name, getattr(self.task, name))

    @property
    def served(self) -> Task:
        """The task of the trained student, on record in what is saved of it."""
        return self.task

    def changed(self) -> dict[str, Any]:
        return {name: value for name, value in super().changed().items() if name != "pair"}

    def begin(self, model: nn.Module, feed: Any, settings: Any, say: Callable[[str], None]) -> None:
        self.task.begin(model, feed, settings, say)
        if self.pair is not None and self.pair.cache is not None:
            self.pair.cache = self.pair.cache.begin(self, model, feed, settings, say)

    def fit(self, examples: Sequence[Example]) -> Self:
        return replace(self, task=self.task.fit(examples))

    def check(self, examples: Sequence[Example]) -> list[Problem]:
        return self.task.check(examples)

    def model_options(self) -> dict[str, Any]:
        return self.task.model_options()

    def encode_all(self, examples: Sequence[Example], tokenizer: Any, length: int | None) -> list[Encoded]:
        return self.task.encode_all(examples, tokenizer, length)

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
        found, view, units = self.terms(model, batch)
        total = view.student.logits.float().sum() * 0  # what the recipe does not reach gets a gradient of 0, not none
        for term in found.values():
            total = total + term.weight * summed(term, view, units)
        return total, units.sum()

    def terms(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Term], View, Tensor]:
        """The recipe's terms, what they were read from, and the units of each row."""
        if self.pair is None:
            raise InputError(
                Problem("there is no teacher", "task", fix="call fw.distill(student, teacher, data, recipe)")
            )
        if "attention_mask" not in batch and (self.recipe.states or self.recipe.attention):
            raise InputError(Problem("packed rows hide where a row begins", "packing", fix="leave it out"))
        given, targets = posed(self.task, model, batch)
        mine, theirs = self.pair.looks(model, self.recipe)
        keys = visible(batch, bool(mine.sites) and self.pair.one_way(model))
        if self.recipe.attention and not self.pair.proven:
            for tap, whose in ((mine, "student"), (theirs, "teacher")):
                prove(tap, given, keys, batch["attention_mask"].bool(), whose)
            self.pair.proven = True
        taught = self.pair.taught(theirs, given, targets)
        seen = mine(given)
        units = torch.ones(len(keys), device=keys.device) if targets is None else (targets != IGNORED).sum(1)
        logits, label = partial(chosen, seen, taught, targets), partial(own_loss, self.task, seen, batch, targets)
        view = View(seen, taught, logits, label, keys)
        return self.recipe.terms(view), view, units


del Task.known["distilled"]  # it is made around a live teacher: no file and no flag can spell it


def summed(term: Term, view: View, units: Tensor) -> Tensor:
    """A term summed over all units: (units) as they are, (batch, seq) as a mean over each row's real tokens."""
    if term.values.dim() == 1:
        return term.values.sum()
    real = view.keys.diagonal(dim1=1, dim2=2) if view.keys.shape[1] > 1 else view.keys[:, 0]
    return (row_mean(term.values, real) * units).sum()


def posed(task: Task, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """What both models are given, and the target of each position (IGNORED where none); None where a unit is a row."""
    if isinstance(task, CausalLM):
        labels = batch["labels"]
        if "position_ids" in batch:
            labels = labels.masked_fill(batch["position_ids"] == 0, IGNORED)
        targets = labels.roll(-1, 1)
        targets[:, -1] = IGNORED
        return inputs(batch), targets
    if isinstance(task, Seq2Seq):
        shifted = inner(model).prepare_decoder_input_ids_from_labels(batch["labels"])  # type: ignore[operator]
        given = {k: batch[k] for k in ("input_ids", "attention_mask")} | {"decoder_input_ids": shifted}
        return given, batch["labels"]
    if isinstance(task, Headed):
        return inputs(batch), None
    raise InputError(
        Problem("no distillation of this task", "task", "a head over a text, CausalLM or Seq2Seq", repr(task))
    )


def visible(batch: Mapping[str, Tensor], one_way: bool) -> Tensor:
    """(b, 1 or s, s): True where a query may look: at real tokens, in a causal model at none after itself."""
    ids = batch["input_ids"]
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
    if not one_way:
        return real[:, None, :]
    return real[:, None, :] & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()


def chosen(student: Seen, teacher: Seen, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logits (units, V) of both: each row's, or each trained position's."""
    return teacher.against(at_units(student.logits, targets))


def at_units(logits: Tensor, targets: Tensor | None) -> Tensor:
    """Logits as they are where a unit is a row, else those of trained positions."""
    return logits if targets is None else logits[targets != IGNORED]


def own_loss(task: Any, student: Seen, batch: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
    """The task's own loss, a value a unit (as a sum in one where the task gives no other)."""
    if targets is None:
        total: Tensor = task.loss_of(student.logits.float(), batch["labels"])
        return total[None]
    kept = targets != IGNORED
    return cross_entropy(student.logits[kept].float(), targets[kept], reduction="none")
