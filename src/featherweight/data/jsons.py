"""JSON lines and JSON arrays, each record with the line it starts on."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import Row, Rows

SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()


def read_jsonl(path: Path, text: str) -> Rows:
    """One object per line; empty lines are skipped. Raises InputError over every line that is not an object."""
    found = [record(line, f"{path}:{n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    raise_all(f for f in found if isinstance(f, Problem))
    return Rows(f for f in found if isinstance(f, Row))


def record(line: str, where: str) -> Row | Problem:
    try:
        return row(json.loads(line), where)
    except json.JSONDecodeError as error:
        got = "the line ends early" if error.pos >= len(line.rstrip()) or "Unterminated" in error.msg else error.msg
        return Problem("broken JSON", where, "one JSON object per line", f"{got} (column {error.colno})")
    except RecursionError:
        return Problem("JSON nested too deeply", where, "one flat object per line")


def row(value: Any, where: str) -> Row | Problem:
    if isinstance(value, dict):
        return Row(value, where)
    return Problem("not a record", where, "a JSON object {…}", f"{type(value).__name__} {short(value)}")


def read_json(path: Path, text: str) -> Rows:
    """An array of objects; a file of objects one after the other is read as JSON lines, with a note."""
    start = SPACE.match(text).end()  # type: ignore[union-attr]
    if text[start] == "{":
        rows = read_jsonl(path, text)
        return Rows(rows, (f"{path}: read as JSON lines",))
    if text[start] != "[":
        raise InputError(Problem("not JSON records", f"{path}:1", "an array of objects [{…}, …]", short(text)))
    found = list(array(path, text, start + 1))
    raise_all(f for f in found if isinstance(f, Problem))
    if not found:
        raise InputError(Problem("the file has no rows", str(path), "at least one object", "[]"))
    return Rows(f for f in found if isinstance(f, Row))


def array(path: Path, text: str, at: int) -> Iterator[Row | Problem]:
    """The elements of the array that opens before `at`; ends with a problem where the syntax does."""
    breaks = [m.start() for m in re.finditer("\n", text)]
    at = skip(text, at)
    while text[at : at + 1] != "]":
        where = f"{path}:{bisect_right(breaks, at - 1) + 1}"
        try:
            value, end = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            yield Problem("broken JSON", f"{path}:{error.lineno}", "an object or ]", f"{error.msg} (record of {where})")
            return
        except RecursionError:
            yield Problem("JSON nested too deeply", where, "flat objects")
            return
        yield row(value, where)
        at = skip(text, end)
        if text[at : at + 1] not in (",", "]"):
            got = repr(text[at]) if at < len(text) else "the end of the file"
            yield Problem("broken JSON", f"{path}:{bisect_right(breaks, at - 1) + 1}", "',' or ']'", got)
            return
        at = skip(text, at + 1) if text[at] == "," else at
    if text[at + 1 :].strip():
        yield Problem("text after the array", f"{path}:{bisect_right(breaks, at) + 1}", "the end of the file",
                      short(text[at + 1 :].strip()))  # fmt: skip


def skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]


def short(value: Any, most: int = 40) -> str:
    """A value as it is shown in an error."""
    shown = repr(value)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
