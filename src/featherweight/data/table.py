"""Delimited text: records with the line they start on, the quoting and the header found by looking."""

import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.names import KNOWN, plain_name
from featherweight.data.types import Row, Rows

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CLASSES = frozenset(("positive", "negative", "neutral", "yes", "no", "true", "false", "spam", "ham"))


@dataclass(frozen=True, slots=True)
class Parsed:
    """Records as (line, cells) and the problems met while splitting them."""

    records: list[tuple[int, list[str]]]
    problems: list[Problem]

    @property
    def uniform(self) -> bool:
        return not self.problems and len({len(cells) for _, cells in self.records}) == 1


def read_table(path: Path, text: str, columns: Mapping[str, str]) -> Rows:
    """Rows of a csv or tsv text. Raises InputError over every ragged or unclosed record."""
    delimiter = delimiter_of(path, text)
    parsed = parse(path, text, delimiter)
    names, named = header(parsed.records, columns)
    body = parsed.records[1:] if named else parsed.records
    ragged = [Problem("ragged row", f"{path}:{line}", f"{len(names)} fields ({', '.join(names)})", str(len(cells)),
                      f"quote fields that contain {delimiter!r}")
              for line, cells in body if len(cells) != len(names)]  # fmt: skip
    raise_all(sorted(parsed.problems + ragged, key=lambda p: int(p.where.rsplit(":", 1)[1])))
    if not body:
        raise InputError(Problem("the file has a header and no rows", str(path), "at least one row", "0"))
    notes = () if named else (f"{path}: no header row; columns were named {', '.join(names)}",)
    return Rows((Row(dict(zip(names, cells, strict=True)), f"{path}:{line}") for line, cells in body), notes)


def delimiter_of(path: Path, text: str) -> str:
    """Tab for tsv; else the first of comma, semicolon, tab that the first line holds."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = text.lstrip().split("\n", 1)[0]
    return next((d for d in ",;\t" if d in first), ",")


def parse(path: Path, text: str, delimiter: str) -> Parsed:
    """Quoted records; a tab-separated file whose quotes are ordinary characters (GLUE) is read without quoting."""
    quoted = split(path, text, delimiter, csv.QUOTE_MINIMAL)
    if delimiter != "\t" or '"' not in text:
        return quoted
    literal = split(path, text, delimiter, csv.QUOTE_NONE)
    if quoted.uniform and (not literal.uniform or quoting_meant(literal)):
        return quoted
    return literal


def quoting_meant(literal: Parsed) -> bool:
    """Both readings fit: quotes are syntax when every word cell has them, or when one doubles them inside."""
    cells = [c for _, record in literal.records[1:] or literal.records for c in record if not NUMBER.fullmatch(c)]
    wrapped = [c for c in cells if len(c) > 1 and c[0] == c[-1] == '"']
    return len(wrapped) == len(cells) or any('""' in c[1:-1] for c in wrapped)


def split(path: Path, text: str, delimiter: str, quoting: Literal[0, 3]) -> Parsed:
    """Every non-empty record with its first line. A broken record is a problem and the next line goes on."""
    records: list[tuple[int, list[str]]] = []
    problems = []
    with unlimited_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        line, more = 1, True
        while more:
            try:
                cells = next(reader, None)
                more = cells is not None
                if cells and any(c.strip() for c in cells):
                    records.append((line, cells))
            except csv.Error as error:
                problems.append(broken(f"{path}:{line}", str(error)))
            line = reader.line_num + 1
    return Parsed(records, problems)


def broken(where: str, error: str) -> Problem:
    if "unexpected end" in error:
        return Problem("a quoted field is never closed", where, 'a closing "', "the end of the file")
    return Problem("broken quoting", where, 'quotes inside a quoted field doubled ("")', error)


@contextmanager
def unlimited_fields() -> Iterator[None]:
    """The csv module refuses fields over 128 KiB by default, and its limit is global: lift it and put it back."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def header(records: list[tuple[int, list[str]]], columns: Mapping[str, str]) -> tuple[list[str], bool]:
    """Column names, and whether the first record held them."""
    if not records:
        return [], True
    first = [cell.strip() for cell in records[0][1]]
    rest = [cells for _, cells in records[1:] if len(cells) == len(first)]
    if is_header(first, rest, columns):
        return unique(first), True
    return made_up([first, *rest]), False


def is_header(first: list[str], rest: list[list[str]], columns: Mapping[str, str]) -> bool:
    """Known names make a header; numbers, sentences, class words and cells that recur in their column make data."""
    if set(first) & set(columns.values()) or {plain_name(c) for c in first} & KNOWN:
        return True
    if not rest or "" in first or len(set(first)) < len(first):
        return False
    looks = any(NUMBER.fullmatch(c) or c.lower() in CLASSES or sentence(c) for c in first)
    return not looks and not any(cell in {row[i].strip() for row in rest} for i, cell in enumerate(first))


def sentence(cell: str) -> bool:
    return len(cell.split()) > 5 or (" " in cell and cell.endswith((".", "?", "!")))


def made_up(rows: list[list[str]]) -> list[str]:
    """text and label for two columns, the one with fewer distinct values being the label; else 1, 2, 3 …"""
    width = len(rows[0])
    if width == 1:
        return ["text"]
    if width != 2:
        return [str(i + 1) for i in range(width)]
    left, right = zip(*rows, strict=True)
    return ["label", "text"] if weight(left) < weight(right) else ["text", "label"]


def weight(cells: tuple[str, ...]) -> tuple[int, int]:
    return len(set(cells)), sum(map(len, cells))


def unique(names: list[str]) -> list[str]:
    """Two columns of one name would hide each other: the second is called name_2."""
    return [n if n not in names[:i] else f"{n}_{names[: i + 1].count(n)}" for i, n in enumerate(names)]
