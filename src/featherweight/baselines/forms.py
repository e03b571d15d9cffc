"""One set of rows in the form that each contender takes, and each contender's answer in one form: text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featherweight.baselines.prompts import answer
from featherweight.baselines.verbal import PROMPT, as_choices, spoken
from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.data.types import Example
from featherweight.evaluate.text import text_scores
from featherweight.tasks.labels import label_name, ordered

if TYPE_CHECKING:
    from featherweight.tasks.task import Task

LABELLED = ("classification", "pair")
TEXTS = ("completion", "instruction", "messages")
SHAPES = (*LABELLED, "choices", *TEXTS)
METRICS = ("exact", "rouge")


@dataclass(frozen=True)
class Forms:
    """The rows to learn from and those to answer. `prompt` and `words` make choices of labels (`as_choices`); `metric`
    is what texts are scored by, row by row: the task's own match, or rougeL."""

    train: Sequence[Example]
    test: Sequence[Example]
    shape: str
    prompt: str = PROMPT
    words: Mapping[str, str] = field(default_factory=dict)
    metric: str = "exact"

    def __post_init__(self) -> None:
        problems = (
            [] if self.shape in SHAPES else [Problem("nothing to compare by", "data", listed(SHAPES), self.shape)]
        )
        if self.metric not in METRICS:
            problems.append(
                Problem("unknown metric", "metric", got=repr(self.metric), fix=did_you_mean(self.metric, METRICS))
            )
        problems += [Problem("no answer in a row", e.where, "an answered row") for e in (*self.train, *self.test)
                     if answer(e) is None]  # fmt: skip
        raise_all(problems)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of labelled rows; those of the rows to answer are refused where training never saw them."""
        return ordered(label_name(e.label) for e in self.train) if self.shape in LABELLED else ()

    @property
    def answers(self) -> list[str]:
        """The answers of the rows to learn from, as text."""
        return [str(answer(e)) for e in self.train]

    @property
    def measure(self) -> str:
        return "accuracy" if self.shape not in TEXTS else {"exact": "exact match", "rouge": "rougeL"}[self.metric]

    def of(self, task: Task, who: str) -> tuple[list[Example], list[Example]]:
        """(train, test) as the task takes them. Raises InputError where it cannot."""
        if self.shape in task.shapes:
            return list(self.train), list(self.test)
        if self.shape in LABELLED and "choices" in task.shapes:
            made = [as_choices(part, self.labels, self.prompt, dict(self.words)) for part in (self.train, self.test)]
            return made[0], made[1]
        fix = "compare on rows of its own kind"
        raise InputError(Problem(f"the rows are not of the task of {who}", "data", f"{type(task).__name__}: "
                                 f"{listed(task.shapes)}", self.shape, fix))  # fmt: skip

    def said(self, label: Any) -> str:
        name = label_name(label)
        return self.words.get(name, spoken(name))

    def told(self, task: Task, example: Example, prediction: Any) -> str:
        """What a prediction answers."""
        found = task.answer(prediction)
        if "text" in found:
            return str(found["text"])
        return example.choices[found["label"]] if example.choices else self.said(found["label"])

    def truth(self, task: Task, example: Example) -> str:
        if example.choices:
            return example.choices[example.label]
        return str(task.reference(example)) if self.shape in TEXTS else self.said(example.label)

    def values(self, task: Task, examples: Sequence[Example], predictions: Sequence[Any]) -> tuple[float, ...]:
        """The score of each row, 0 to 1."""
        pairs = [(self.told(task, e, p), self.truth(task, e)) for e, p in zip(examples, predictions, strict=True)]
        if self.shape not in TEXTS:
            return tuple(float(said == true) for said, true in pairs)
        if self.metric == "exact":
            return tuple(next(iter(task.score([said], [true]).values())) for said, true in pairs)
        return tuple(text_scores([said], [true], "rouge")["rougeL"] for said, true in pairs)

    def commonest(self) -> tuple[float, ...] | None:
        """The score of each row when the commonest label of training is always the answer; None for texts."""
        if self.shape in TEXTS:
            return None
        seen = [label_name(e.label) for e in self.train]
        best = max(ordered(seen), key=seen.count)
        return tuple(float(label_name(e.label) == best) for e in self.test)
