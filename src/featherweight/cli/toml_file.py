"""run.toml as a flat list of values, each with the line it stands on, so that every problem can name its place."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featherweight.cli.value import Value
from featherweight.core.errors import InputError, Problem

TABLES = (
    "method",
    "task",
    "quantize",
    "columns",
    "over",
)  # the keys that may be tables; their entries are written `method.rank`
HEADER = re.compile(r"^\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
ENTRY = re.compile(r"""^\s*((?:"[^"]*"|'[^']*'|[\w-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[\w-]+))*)\s*=""")


def read_toml(path: Path, tables: Sequence[str] = TABLES) -> list[Value]:
    """The file's values. Raises InputError for a missing file, bytes that are not UTF-8 and TOML that is not TOML."""
    text = decoded(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        what = re.sub(r" \(at .*\)$", "", str(error))
        where = f"{path.name}:{line.group(1) if line else text.count(chr(10)) + 1}"
        raise InputError(Problem("not valid TOML", where, got=what)) from None
    places = lines(text)
    return [
        Value(key, value, f"{path.name}:{places.get(key, places.get(key.split('.')[0], 1))}:{key}")
        for key, value in flat(data, tables)
    ]


def decoded(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        fix = "give the path of a run.toml" if isinstance(error, FileNotFoundError) else ""
        raise InputError(Problem(error.strerror or "cannot be read", str(path), fix=fix)) from None
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(Problem("not UTF-8", f"{path.name}:{line}", got=hex(raw[error.start]))) from None


def flat(data: dict[str, Any], tables: Sequence[str] = TABLES) -> list[tuple[str, Any]]:
    """Dotted keys: one level into the tables that take options, no further."""
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if key in tables and isinstance(value, dict):
            found += [(f"{key}.{inner}", v) for inner, v in value.items()]
        else:
            found.append((key, value))
    return found


def lines(text: str) -> dict[str, int]:
    """The line on which each dotted key first appears, 1-based; tables count as keys."""
    places: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        if header := HEADER.match(line):
            table = clean(header.group(1)) + "."
            places.setdefault(table[:-1], number)
        elif entry := ENTRY.match(line):
            places.setdefault(table + clean(entry.group(1)), number)
    return places


def clean(key: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in key.split("."))
