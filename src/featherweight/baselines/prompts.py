"""Rows with something put in front of their question: what does not fit the model's context is dropped whole.

row i with its pieces, best first  ──►  as many of them as fit  ──►  Prompts (a list of examples)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem
from featherweight.data.types import Example, Turn
from featherweight.evaluate.source import labelled
from featherweight.tasks.asking import answer_of, asked

if TYPE_CHECKING:
    from torch import nn

    from featherweight.tasks.task import Task

Picked = list[list[int]]  # by row: numbers of pieces, best first
Render = Callable[[Example, list[int]], Example]
Fits = Callable[[list[Example]], list[bool]]


class Prompts(list[Example]):
    """Examples as every verb takes them. `used[i]`: the numbers of the pieces in front of row i, best first;
    `dropped[i]`: how many more were meant to be there and did not fit."""

    def __init__(self, examples: Iterable[Example], used: Picked, dropped: list[int]):
        super().__init__(examples)
        self.used, self.dropped = used, dropped

    def __repr__(self) -> str:
        mean = sum(map(len, self.used)) / max(len(self), 1)
        lost = f"; {sum(self.dropped)} dropped in {sum(map(bool, self.dropped))} rows" if any(self.dropped) else ""
        return f"Prompts: {len(self)} rows, {mean:.4g} in front of each{lost}"


def fitted(rows: Sequence[Example], picked: Picked, render: Render, fits: Fits, what: str) -> Prompts:
    """Every row behind as many of its pieces as fit, the worst of them given up first.

    Raises InputError where pieces are asked for and not one fits before any row.
    """
    kept = [list(p) for p in picked]
    made = [render(row, used) for row, used in zip(rows, kept, strict=True)]
    open_ = [i for i, used in enumerate(kept) if used]
    while open_:
        good = fits([made[i] for i in open_])
        open_ = [i for i, ok in zip(open_, good, strict=True) if not ok]
        for i in open_:
            kept[i].pop()
            made[i] = render(rows[i], kept[i])
        open_ = [i for i in open_ if kept[i]]
    if any(picked) and not any(kept):
        fix = "raise length, take fewer or shorter ones, or a model with more positions"
        raise InputError(Problem(f"no {what} fits in front of any row", rows[0].where, "room for one", fix=fix))
    return Prompts(made, kept, [len(p) - len(k) for p, k in zip(picked, kept, strict=True)])


@dataclass(frozen=True)
class Room:
    """What fits: rows of which encoding cuts nothing, as questions and with their answers."""

    model: nn.Module
    task: Task
    tokenizer: Any
    length: int | None

    def __call__(self, examples: list[Example]) -> list[bool]:
        from featherweight.evaluate.setting import lengths
        from featherweight.tasks.check import check_length

        whole = self.task.encode_all(examples, self.tokenizer, check_length(self.model, self.length))
        made = [not row.truncated for row in whole]
        if not self.task.generates:
            return made
        questions = self.task.ask(examples, self.tokenizer, lengths(self.model, self.task, self.length))
        return [ok and not row.truncated for ok, row in zip(made, questions, strict=True)]


def room(model: nn.Module, examples: Sequence[Example], task: Task | None, tokenizer: Any, length: int | None) -> Room:
    """Raises InputError where the task cannot take the rows."""
    from featherweight.evaluate.setting import task_of, tokenizer_of

    shape = "choices" if examples[0].choices else None
    return Room(model, task_of(model, task, shape), tokenizer_of(model, tokenizer), length)


def source(data: Any, split: str | None, columns: Any) -> list[Example]:
    """The examples of whatever holds them; those in memory as they are."""
    if isinstance(data, Sequence) and data and isinstance(data[0], Example):
        return list(data)
    return labelled(data, split, columns)[1]


def question(example: Example) -> str:
    """What a row asks, without its answer: what is looked up."""
    if example.messages:
        said = [str(m["content"]) for m in example.messages if m["role"] == "user"]
        return said[-1] if said else ""
    if example.turns and not example.choices:
        return "".join(turn.text for turn in asked(example).turns).strip()
    return "\n".join(t for t in (example.text, example.pair) if t)


def answer(example: Example) -> str | None:
    """A row's answer as text; None in a row without one."""
    if example.choices:
        return example.choices[example.label] if example.label is not None else None
    if example.turns or example.messages:
        return answer_of(example)
    return str(example.label) if example.label is not None else None


def kind(example: Example) -> str:
    """Which of the forms of a prompt a row has."""
    if example.choices:
        return "text and choices"
    if example.messages:
        return "messages"
    return "prompt and completion" if example.turns else "text and label"


def before(example: Example, text: str) -> Example:
    """The row with `text` in front of its question."""
    from dataclasses import replace

    if example.choices:
        return replace(example, text=text + example.text)
    if not example.messages:
        return replace(example, turns=(Turn(text, False), *example.turns))
    at = max(i for i, m in enumerate(example.messages) if m["role"] == "user")
    said = {**example.messages[at], "content": text + str(example.messages[at]["content"])}
    return replace(example, messages=(*example.messages[:at], said, *example.messages[at + 1 :]))
