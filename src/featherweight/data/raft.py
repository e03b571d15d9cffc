"""RAFT's files: a folder a task with train.csv (50 labelled rows), task.json, and unlabelled rows to answer.

    task.json     {"data_columns": ["Tweet", "ID"], "label_columns": {"Label": ["hate speech", "not hate speech"]}}
    submission    data/<task>/predictions.csv with the columns ID (integer) and Label (the class as text)

Source: Alex et al. 2021, "RAFT: a real-world few-shot text classification benchmark", arXiv:2109.14076.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.jsons import short
from featherweight.data.types import Row

TASK = "task.json"


def numbers_beside(file: Path) -> dict[str, int] | None:
    """Class -> number, from the task.json in a file's folder; None where there is none. Raises InputError for one that
    names no classes."""
    path = file.parent / TASK
    if not path.is_file():
        return None
    try:
        columns = json.loads(path.read_text(encoding="utf-8"))["label_columns"]
        names = columns["Label"]
        return {str(name): number for number, name in enumerate(names)}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        problem = Problem("no classes in it", str(path), '{"label_columns": {"Label": [classes]}}', repr(error))
        raise InputError(problem) from error


def submission(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """The text of predictions.csv. Raises InputError over every row whose ID is no number or comes twice."""
    given = [row.fields.get("ID") for row in rows]
    seen: Mapping[str, int] = {str(value): i for i, value in reversed(list(enumerate(given)))}
    raise_all(
        Problem("an ID that comes twice" if str(value).isdecimal() else "not an ID", f"{row.where}:ID",
                "a whole number, each once", short(value))
        for i, (row, value) in enumerate(zip(rows, given, strict=True))
        if not str(value).isdecimal() or seen[str(value)] != i
    )  # fmt: skip
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([("ID", "Label"), *zip(map(str, given), labels, strict=True)])
    return text.getvalue()
