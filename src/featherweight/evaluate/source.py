"""Whatever holds rows (a path, loaded data, dicts, texts, examples) to examples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.data.load import Data, fitting, load
from featherweight.data.names import ANSWERS
from featherweight.data.read import read
from featherweight.data.rows import examples
from featherweight.data.shape import Shape, shape_of
from featherweight.data.types import Example, Row, Turn

SPLITS = ("test", "valid", "train")
Columns = Mapping[str, str] | str | None


def labelled(data: Any, split: str | None = None, columns: Columns = None) -> tuple[str, list[Example], Any]:
    """(name, examples, shape) to evaluate on: the split asked for, else the first of test, valid, train with answers.

    A file goes by its own name; a list of `Example`s is taken as it is (named "rows", no shape).
    """
    if isinstance(data, Sequence) and data and isinstance(data[0], Example):
        return "rows", list(data), None
    loaded = data if isinstance(data, Data) else load(data, columns)
    held = {name: getattr(loaded, name) for name in SPLITS if getattr(loaded, name)}
    shapes = {name: fitting(rows, loaded.shape) for name, rows in held.items()}
    answered = [name for name, shape in shapes.items() if shape.labelled or shape.name == "text"]
    name = split or next(iter(answered), "")
    if name not in answered:
        raise InputError(unscored(data, loaded, held, answered, split))
    shown = Path(data).name if isinstance(data, str | Path) and Path(data).is_file() else name
    return shown, examples(held[name], shapes[name]), loaded.shape


def unscored(data: Any, loaded: Data, held: Mapping[str, Any], answered: Sequence[str], split: str | None) -> Problem:
    """Why there is nothing to evaluate on: no such split, or no answers in it."""
    first = [row.fields.items() for rows in held.values() for row in rows[:1]]
    seen = listed(list(dict.fromkeys(str(key) for fields in first for key, value in fields if value not in (None, ""))))
    named = [row.where.rpartition(":")[0] for rows in held.values() for row in rows[:1]]
    where = os.fspath(data) if isinstance(data, str | Path) else next(iter(named), loaded.name)
    if split and split not in held:
        return Problem("no such split", f"{where}: split {split!r}", f"one of {listed(answered)}", listed(list(held)))
    part = f"{where}: split {split!r}" if split else where
    want = f"rows with {' or '.join(role for role in loaded.shape.columns if role in ANSWERS) or 'answers'}"
    fix = "name the column (--columns label=…; in templates {% set label = … %}), or only ask: fw predict"
    return Problem("the rows have no answers to score", part, want, f"columns {seen}", fix)


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
    bare = set(ANSWERS) & set(shape.columns)
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
