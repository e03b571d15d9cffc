"""Whatever holds rows (a path, loaded data, dicts, texts, examples) to examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.data.read import read
from featherweight.data.rows import examples
from featherweight.data.shape import Shape, shape_of
from featherweight.data.types import Example, Row, Turn

SPLITS = ("test", "valid", "train")
Columns = Mapping[str, str] | str | None


def labelled(data: Any, split: str | None = None, columns: Columns = None) -> tuple[str, list[Example], Any]:
    """(split, examples, shape) to evaluate on: the split asked for, else the first of test, valid, train with rows.

    A list of `Example`s is taken as it is (split "rows", no shape).
    """
    if isinstance(data, Sequence) and data and isinstance(data[0], Example):
        return "rows", list(data), None
    if not hasattr(data, "train"):
        from featherweight.data.load import load

        data = load(data, columns)
    held = {name: getattr(data, name) for name in SPLITS if getattr(data, name, None)}
    name = split or next(iter(held), "")
    if name not in held:
        raise InputError(Problem("no rows to evaluate on", f"split {name!r}", f"one of {listed(list(held))}"))
    rows = list(held[name])
    return name, rows if isinstance(rows[0], Example) else examples(rows, data.shape), data.shape


def questions(rows: Any, columns: Columns = None) -> list[Example]:
    """Examples of a file, or of texts, dicts and examples in memory, labelled or not, in their order."""
    if isinstance(rows, str | Path):
        return without_labels(read(rows, columns), columns)
    items = list(rows)
    if not items:
        raise InputError(Problem("nothing to predict", "rows", "at least one row", "0"))
    if isinstance(items[0], Example):
        return items
    if any(isinstance(item, str) for item in items):
        raise_all(Problem("not a text", f"rows[{i}]", "text, as the other rows", type(item).__name__)
                  for i, item in enumerate(items) if not isinstance(item, str))  # fmt: skip
        return [Example(f"rows[{i}]", text, turns=(Turn(text, False),)) for i, text in enumerate(items)]
    return without_labels(read(items), columns)


def without_labels(rows: Iterable[Row], columns: Columns) -> list[Example]:
    """Examples of rows whose answers, if any, do not matter: a prompt keeps the seam that its answer would follow."""
    rows = list(rows)
    shape = shape_of(rows, columns)
    bare = {"label", "score", "labels", "completion", "output"} & set(shape.columns)
    if shape.name in ("classification", "pair", "regression", "multilabel"):
        shape = Shape("text", {role: column for role, column in shape.columns.items() if role not in bare}, False)
    elif bare:
        shape = replace(shape, labelled=False)
    made = examples(rows, shape)
    return [seamed(e) for e in made] if shape.name == "completion" else made


def seamed(example: Example) -> Example:
    """A prompt alone, ending as it does in front of an answer that starts with a word."""
    *before, last = example.turns
    text = last.text if last.text[-1:].isspace() else last.text + "\n"
    return replace(example, turns=(*before, replace(last, text=text)))
