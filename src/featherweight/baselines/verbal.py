"""Labels as words: a labelled row turned into a text and choices, so that a language model can rank its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from featherweight.baselines.prompts import source
from featherweight.core.errors import Problem, did_you_mean, raise_all
from featherweight.data.types import Example
from featherweight.tasks.labels import label_name, ordered, unseen

PROMPT = "{text}\nLabel:"


def as_choices(
    data: Any, labels: Sequence[str] = (), prompt: str = PROMPT, words: Mapping[str, str] | None = None, *,
    split: str | None = None, columns: Any = None,
) -> list[Example]:  # fmt: skip
    """Rows of one label (a file, dicts, `Data` or examples) as rows of `Choices` over all labels: those met in the
    rows, unless given, in order.

    `prompt` has {text}, the row's text or its two texts on two lines; `words` says how a label is read (default: its
    own name, _ as a space). Raises InputError for labels unknown to `labels`, and for two that read alike.
    """
    examples = source(data, split, columns)
    names = tuple(labels) or ordered(label_name(e.label) for e in examples if e.label is not None)
    said = {name: (words or {}).get(name, spoken(name)) for name in names}
    check(examples, said, prompt, dict(words or {}))
    choices = tuple(said.values())
    numbers = {name: i for i, name in enumerate(names)}
    return [
        replace(e, text=prompt.replace("{text}", both(e)), pair=None, choices=choices,
                label=None if e.label is None else numbers[label_name(e.label)])
        for e in examples
    ]  # fmt: skip


def spoken(label: str) -> str:
    return label.replace("_", " ").strip()


def both(example: Example) -> str:
    return "\n".join(text.strip() for text in (example.text, example.pair) if text is not None)


def check(examples: Sequence[Example], said: dict[str, str], prompt: str, words: dict[str, str]) -> None:
    names = list(said)
    problems = [unseen(label_name(e.label), names, e.where) for e in examples
                if e.label is not None and label_name(e.label) not in said]  # fmt: skip
    if "{text}" not in prompt:
        problems.append(Problem("the prompt leaves the text out", "prompt", "{text} in it", repr(prompt)))
    problems += [Problem("no such label", f"words.{w}", fix=did_you_mean(w, names)) for w in words if w not in said]
    if len(names) < 2:
        problems.append(Problem("fewer than two labels to tell apart", "labels", "at least two", repr(names)))
    twice = [name for name, word in said.items() if list(said.values()).count(word) > 1]
    if twice:
        problems.append(Problem("labels that read alike", "words", "a word for each", ", ".join(twice)))
    raise_all(problems)
