"""Rows of a known shape to examples; every bad field is one Problem `file:line:field`, all raised together."""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from featherweight.core.errors import raise_all
from featherweight.data.chat import chat
from featherweight.data.facts import fact
from featherweight.data.fields import Found, bad, text_at
from featherweight.data.shape import Shape, missing, number
from featherweight.data.spans import spanned
from featherweight.data.tagged import tagged
from featherweight.data.types import Example, Row, Turn


def examples(rows: Sequence[Row], shape: Shape) -> list[Example]:
    """One example per row, in order. Raises InputError over all bad rows."""
    build = BUILDERS[shape.name]
    problems: Found = []
    made = [build(row, shape, problems) for row in rows]
    raise_all(problems)
    return made


def classify(row: Row, shape: Shape, problems: Found) -> Example:
    """text, label, score and labels, single or pair."""
    columns = shape.columns
    text = text_at(row, columns["text"], problems)
    pair = text_at(row, columns["text_pair"], problems) if shape.pair else None
    if shape.name == "text":
        turns = () if shape.pair else (Turn(text, True),)
        return Example(row.where, text, pair, turns=turns, source=row.source)
    if not shape.labelled:
        return Example(row.where, text, pair, source=row.source)
    column = next(columns[r] for r in ("label", "score", "labels") if r in columns)
    label = LABELS[shape.name](row, column, problems)
    return Example(row.where, text, pair, label, source=row.source)


def class_at(row: Row, column: str, problems: Found) -> str | None:
    """A class name; 3, 3.0 and "3" are one class, and so are true and "true"."""
    value = row.fields.get(column)
    if missing(value):
        problems.append(bad(row, column, "missing label", "a label as in the other rows", value))
        return None
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not isfinite(value)):
        problems.append(bad(row, column, "wrong type", "one label: text or integer", value))
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return value.strip() if isinstance(value, str) else str(int(value) if value == int(value) else value)


def score_at(row: Row, column: str, problems: Found) -> float | None:
    value = row.fields.get(column)
    found = number(value)
    if found is None:
        what = "missing score" if missing(value) else "not a number"
        problems.append(bad(row, column, what, "a finite number", value))
    return found


def labels_at(row: Row, column: str, problems: Found) -> tuple[str, ...]:
    """A set of labels: a list, or in tables their names separated by `|`, `;` or `,`. An empty list is no label."""
    value = row.fields.get(column)
    if isinstance(value, str):
        separator = next((s for s in "|;," if s in value), ",")
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    if not isinstance(value, list | tuple) or not all(isinstance(v, str | int) for v in value):
        problems.append(bad(row, column, "not a list of labels", "a list of texts or integers", value))
        return ()
    return tuple(str(v) for v in value)


def prompt(row: Row, shape: Shape, problems: Found) -> Example:
    """prompt, completion. Where neither has white space at the seam, a line break keeps the words apart."""
    asked = text_at(row, shape.columns["prompt"], problems)
    if not shape.labelled:
        return Example(row.where, turns=(Turn(asked, False),), source=row.source)
    answer = text_at(row, shape.columns["completion"], problems)
    seam = "" if asked[-1:].isspace() or answer[:1].isspace() else "\n"
    return Example(row.where, turns=(Turn(asked + seam, False), Turn(answer, True)), source=row.source)


def instruction(row: Row, shape: Shape, problems: Found) -> Example:
    """Alpaca's fields in our plain template: `Instruction:`, `Input:`, `Output:`, each on a line of its own."""
    columns = shape.columns
    given = {r: text_at(row, columns[r], problems, optional=True) for r in ("input", "system") if r in columns}
    turns = list(past(row, columns.get("history", ""), problems))
    head = given.get("system", "") + "\n\n" if given.get("system") else ""
    if turns:
        turns[0] = Turn(head + turns[0].text, False)
        head = "\n\n"
    asked = text_at(row, columns["instruction"], problems)
    turns.append(Turn(head + ask(asked, given.get("input", "")), False))
    if shape.labelled:
        turns.append(Turn(text_at(row, columns["output"], problems), True))
    return Example(row.where, turns=tuple(turns), source=row.source)


def ask(asked: str, given: str = "") -> str:
    """The template around one instruction."""
    middle = f"Input:\n{given}\n\n" if given else ""
    return f"Instruction:\n{asked}\n\n{middle}Output:\n"


def past(row: Row, column: str, problems: Found) -> list[Turn]:
    """Earlier rounds, a list of [instruction, output]; their outputs are trained like the last one."""
    rounds = row.fields.get(column) or []
    if not isinstance(rounds, list) or not all(
        isinstance(r, list) and len(r) == 2 and all(isinstance(t, str) and t.strip() for t in r) for r in rounds
    ):
        problems.append(bad(row, column, "broken history", "a list of [instruction, output]", rounds))
        return []
    gap = ["", *["\n\n"] * len(rounds)]
    return [t for g, (asked, answer) in zip(gap, rounds, strict=False)
            for t in (Turn(g + ask(asked), False), Turn(answer, True))]  # fmt: skip


def messages(row: Row, shape: Shape, problems: Found) -> Example:
    column = shape.columns["messages"]
    found, turns = chat(row.fields.get(column), f"{row.where}:{column}")
    problems.extend(found)
    return Example(row.where, messages=turns, source=row.source)


def choosing(row: Row, shape: Shape, problems: Found) -> Example:
    """text, choices and the number of the right one, which the row may also give as its text."""
    text = text_at(row, shape.columns["text"], problems)
    column = shape.columns["choices"]
    given = row.fields.get(column)
    if not isinstance(given, list | tuple) or not all(isinstance(c, str) and c.strip() for c in given):
        problems.append(bad(row, column, "not a list of choices", "a list of texts, none of them empty", given))
        given = ()
    elif len(set(given)) < max(2, len(given)):
        problems.append(bad(row, column, "nothing to choose from", "at least two choices, each of them once", given))
        given = ()
    label = right_of(row, shape.columns["label"], given, problems) if given and shape.labelled else None
    return Example(row.where, text, label=label, source=row.source, choices=tuple(given))


def contrasting(row: Row, shape: Shape, problems: Found) -> Example:
    """anchor, positive and any hard negatives: the positive is choice 0. Rows of one label, if any, belong together."""
    columns = shape.columns
    text, positive = text_at(row, columns["anchor"], problems), text_at(row, columns["positive"], problems)
    column = columns.get("negative", "")
    given = row.fields.get(column)
    negatives = [] if missing(given) else [given] if isinstance(given, str) else given
    if not isinstance(negatives, list | tuple) or not all(isinstance(n, str) and n.strip() for n in negatives):
        problems.append(bad(row, column, "not a negative", "a text or a list of texts, none of them empty", given))
        negatives = ()
    if positive in negatives:
        problems.append(bad(row, column, "the positive is among the negatives", "other texts", positive))
    label = class_at(row, columns["label"], problems) if "label" in columns else None
    return Example(row.where, text, label=label, source=row.source, choices=(positive, *negatives))


def right_of(row: Row, column: str, given: Sequence[str], problems: Found) -> int | None:
    """The number of the right choice, from its number (from 0) or its text."""
    value = row.fields.get(column)
    if isinstance(value, str) and value in given:
        return given.index(value)
    found = number(value)
    if found is not None and found == int(found) and 0 <= found < len(given):
        return int(found)
    what = "missing answer" if missing(value) else "no such choice"
    problems.append(bad(row, column, what, f"0 to {len(given) - 1}, or the text of a choice", value))
    return None


LABELS: dict[str, Callable[[Row, str, Found], Any]] = {
    "classification": class_at, "pair": class_at, "regression": score_at, "multilabel": labels_at,
}  # fmt: skip
BUILDERS: dict[str, Callable[[Row, Shape, Found], Example]] = {
    "text": classify, "classification": classify, "pair": classify, "regression": classify, "multilabel": classify,
    "completion": prompt, "instruction": instruction, "messages": messages,
    "choices": choosing, "contrast": contrasting, "spans": spanned, "tokens": tagged, "fact": fact,
}  # fmt: skip
