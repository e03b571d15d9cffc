"""Sentences cut into words with a tag for each: a list and a list, or in tables two texts of words with white space."""

from typing import Any

from featherweight.core.errors import Problem
from featherweight.data.fields import Found, bad
from featherweight.data.jsons import short
from featherweight.data.shape import Shape
from featherweight.data.types import Example, Row


def tagged(row: Row, shape: Shape, problems: Found) -> Example:
    """`words`, and their tags as `label`."""
    column = shape.columns["tokens"]
    words = listed_at(row, column, problems)
    bare = [i for i, word in enumerate(words, 1) if not word.strip()]
    if bare:
        problems.append(Problem("an empty token", f"{row.where}:{column}", "words", f"token {bare[0]}"))
    label = None
    if shape.labelled:
        tags = listed_at(row, shape.columns["tags"], problems)
        if words and tags and len(tags) != len(words):
            got = f"{len(words)} tokens, {len(tags)} tags"
            problems.append(Problem("not one tag for each token", f"{row.where}:{shape.columns['tags']}", got=got))
        label = tuple(tag.strip() for tag in tags)
    return Example(row.where, " ".join(words), label=label, words=tuple(words), source=row.source)


def listed_at(row: Row, column: str, problems: Found) -> list[str]:
    value: Any = row.fields.get(column)
    if isinstance(value, str):
        value = value.split()
    if isinstance(value, list | tuple) and value and all(isinstance(v, str | int) for v in value):
        return [str(v) for v in value]
    what = "not a list of words" if column in row.fields else "missing field"
    problems.append(bad(row, column, what, "a list of texts, or words with spaces between", short(value)))
    return []
