"""Questions whose answers are pieces of a passage: where each piece stands, checked against the passage.

| answers                                            | as in            |
|----------------------------------------------------|------------------|
| {"text": ["Rome"], "answer_start": [17]}           | SQuAD on the hub |
| [{"text": "Rome", "answer_start": 17}]             | SQuAD's own file |
| "Rome", with a column answer_start or without it   | plain tables     |
| none: "", null, [], {"text": [], ...}              | SQuAD 2          |

An answer without its place stands wherever its words do: every occurrence is one (distant supervision).
"""

import re
from collections.abc import Iterator
from typing import Any

from featherweight.core.errors import Problem
from featherweight.data.fields import Found, bad, text_at
from featherweight.data.jsons import short
from featherweight.data.shape import Shape, missing
from featherweight.data.types import Example, Row

Span = tuple[int, str]  # where it starts, in characters, and its text
FORMS = "a text, {text, answer_start}, a list of these, or null where there is no answer"


def spanned(row: Row, shape: Shape, problems: Found) -> Example:
    """The question as `text`, the passage as `pair`; `label`: its answers as (start, text), none for no answer."""
    columns = shape.columns
    text, passage = (text_at(row, columns[role], problems) for role in ("text", "text_pair"))
    if not shape.labelled or not passage:
        return Example(row.where, text, passage, source=row.source)
    column = columns["answers"]
    given = given_of(row.fields.get(column), row.fields.get(columns.get("start", "")))
    if given is None or column not in row.fields:
        what = "not an answer" if column in row.fields else "missing field"
        problems.append(bad(row, column, what, FORMS, row.fields.get(column)))
        given = []
    spans = [span for answer, start in given for span in placed(row, column, passage, answer, start, problems)]
    return Example(row.where, text, passage, tuple(dict.fromkeys(spans)), source=row.source)


def given_of(value: Any, start: Any = None) -> list[tuple[Any, Any]] | None:
    """Pairs of text and start (None: not said) from any of the forms; None where it is none of them."""
    if missing(value):
        return []
    if isinstance(value, str):
        return [(value, start)]
    if isinstance(value, dict):
        return paired(value.get("text"), value.get("answer_start"))
    if isinstance(value, list | tuple):
        found = [given_of(v) for v in value]
        return None if None in found else [pair for pairs in found for pair in pairs or ()]
    return None


def paired(texts: Any, starts: Any) -> list[tuple[Any, Any]] | None:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        return None
    starts = [starts] if isinstance(starts, int) else [None] * len(texts) if starts is None else starts
    return list(zip(texts, starts, strict=True)) if len(starts) == len(texts) else None


def placed(row: Row, column: str, passage: str, answer: str, start: Any, problems: Found) -> Iterator[Span]:
    """Where an answer stands, without white space around it; a Problem where it does not."""
    bare = answer.strip()
    if missing(start):
        yield from ((at, bare) for at in everywhere(passage, bare))
        if bare and bare in passage:
            return
        problems.append(Problem("the answer is not in the context", f"{row.where}:{column}", "a piece of it, to the "
                                "letter", short(answer), near(passage, bare)))  # fmt: skip
        return
    found = number(start)
    if found is None or passage[found : found + len(answer)] != answer or not bare:
        there = short(passage[found : found + len(answer)]) if found is not None else repr(start)
        problems.append(Problem("the answer does not stand where answer_start says", f"{row.where}:{column}",
                                f"{short(answer)} at {start}", there, near(passage, bare)))  # fmt: skip
        return
    yield found + len(answer) - len(answer.lstrip()), bare


def number(start: Any) -> int | None:
    """A place in a text, also from a table's words."""
    text = str(start).strip()
    return int(text) if text.isdecimal() and not isinstance(start, bool) else None


def everywhere(passage: str, answer: str) -> list[int]:
    """Where the words of an answer start; occurrences inside of longer words only where there are no others."""
    if not answer:
        return []
    inside = [m.start() for m in re.finditer(re.escape(answer), passage)]
    whole = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", passage)]
    return whole or inside


def near(passage: str, answer: str) -> str:
    """Where the answer stands instead, if anywhere."""
    at = passage.find(answer) if answer else -1
    if at >= 0:
        return f"it stands at {at}"
    at = passage.lower().find(answer.lower()) if answer else -1
    if at >= 0:
        return f"the context has {passage[at : at + len(answer)]!r} at {at}"
    return "texts that are no pieces of a context: --columns prompt=…,completion=… and a generating task"
