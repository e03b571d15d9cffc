"""SQuAD's own file: articles of paragraphs of questions, as rows that go by the question's id.

{"version": "v2.0", "data": [{"title": "Rome", "paragraphs": [{"context": "...", "qas": [
    {"id": "56be", "question": "...", "answers": [{"text": "...", "answer_start": 5}]}]}]}]}
"""

import json
import re
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem
from featherweight.data.types import Row, Rows

OPENING = re.compile(r'\s*\{.{0,200}?"data"\s*:\s*\[', re.DOTALL)


def looks_so(text: str) -> bool:
    return OPENING.match(text) is not None and '"paragraphs"' in text


def read_squad(path: Path, text: str) -> Rows:
    """One row {question, context, answers} per question. Raises InputError where the file is built otherwise."""
    try:
        articles: Any = json.loads(text)["data"]
        found = [
            Row({"question": q["question"], "context": p["context"], "answers": q.get("answers")}, f"{path}:{q['id']}")
            for article in articles
            for p in article["paragraphs"]
            for q in p["qas"]
        ]
    except json.JSONDecodeError as error:
        raise InputError(Problem("broken JSON", f"{path}:{error.lineno}", "SQuAD's file", error.msg)) from error
    except (KeyError, TypeError) as error:
        want = "data of paragraphs of qas, each with id and question"
        raise InputError(Problem("not SQuAD's file", str(path), want, f"no {error}")) from error
    if not found:
        raise InputError(Problem("the file has no question", str(path), "at least one"))
    return Rows(found, (f"{path}: SQuAD's file, its questions by their id",))
