"""Facts to probe a model for: a subject, an object, and the words between them or the name of their relation.

LAMA's rows: {"sub_label": "Peru", "obj_label": "Lima", "predicate_id": "P36"}; its relations.jsonl:
{"relation": "P36", "template": "The capital of [X] is [Y] ."}        (Petroni et al. 2019, arXiv:1909.01066)
"""

import os

from featherweight.core.errors import Problem, raise_all
from featherweight.data.fields import Found, bad, text_at
from featherweight.data.read import read
from featherweight.data.shape import Shape, missing
from featherweight.data.types import Example, Row

SUBJECT, OBJECT = "[X]", "[Y]"


def fact(row: Row, shape: Shape, problems: Found) -> Example:
    """The subject as `text`, the object as `label`; `pair` is a template, or the name of a relation that has one."""
    columns = shape.columns
    subject = text_at(row, columns["subject"], problems)
    words = None
    for role in ("relation", "template"):
        if role in columns and not missing(row.fields.get(columns[role])):
            words = text_at(row, columns[role], problems)
    if words is not None and "template" in columns and not (SUBJECT in words or "relation" in columns):
        problems.append(bad(row, columns["template"], "not a template", f"{SUBJECT} and {OBJECT} in it", words))
    obj = text_at(row, columns["object"], problems) if shape.labelled else None
    return Example(row.where, subject, words, obj, source=row.source)


def relation_templates(path: str | os.PathLike[str]) -> dict[str, str]:
    """relation -> template, of a file with these columns (LAMA's relations.jsonl). Raises InputError for a row that
    lacks one of them, and for a relation that stands in it twice."""
    rows, found, problems = read(os.fspath(path)), {}, []
    for row in rows:
        name, template = (row.fields.get(key) for key in ("relation", "template"))
        if not isinstance(name, str) or not isinstance(template, str):
            problems.append(Problem("not a relation", row.where, "relation and template"))
        elif name in found:
            problems.append(Problem("a relation twice", f"{row.where}:relation", got=name))
        else:
            found[name] = template
    raise_all(problems)
    return found
