"""A field of a row as what it should be; what it is not is a Problem `file:line:field`."""

from typing import Any

from featherweight.core.errors import Problem
from featherweight.data.jsons import short
from featherweight.data.shape import missing
from featherweight.data.types import Row

Found = list[Problem]


def bad(row: Row, column: str, what: str, expected: str, value: Any) -> Problem:
    got = "nothing" if column not in row.fields else short(value)
    return Problem(what, f"{row.where}:{column}", expected, got)


def text_at(row: Row, column: str, problems: Found, optional: bool = False) -> str:
    """The text in a column; numbers are no texts, and an empty one is a problem unless it is optional."""
    value = row.fields.get(column)
    if missing(value):
        if not optional:
            what = "empty text" if column in row.fields else "missing field"
            problems.append(bad(row, column, what, "text", value))
        return ""
    if not isinstance(value, str):
        problems.append(bad(row, column, "wrong type", "text", value))
        return ""
    return value
