"""`read`: one file to rows that know their line. csv, tsv, jsonl, json, parquet, txt, conll; or dicts in memory.

txt: one row per paragraph where blank lines separate paragraphs, else one row per line; lines that all hold the same
number of tabs are read as tsv, and lines that all start with a class number or a `__label__` as label and text.
parquet has no lines: `where` counts records from 1. Decisions are kept as `rows.notes`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.data import conll, squad
from featherweight.data.jsons import read_json, read_jsonl
from featherweight.data.shape import mapping
from featherweight.data.table import read_table
from featherweight.data.text import read_text
from featherweight.data.types import Row, Rows

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", *conll.SUFFIXES)
LED = re.compile(r"(?:__label__)?(?P<label>(?<=__label__)\S+|\d+)\s+(?P<text>\S.*)")
Columns = Mapping[str, str] | str | None


def read(source: str | Path | Iterable[Mapping[str, Any]], columns: Columns = None) -> Rows:
    """Rows of a file or of dicts in memory (`data:1`, `data:2` …). Raises InputError over everything unreadable."""
    if not isinstance(source, str | Path):
        return from_memory(source)
    path = Path(source)
    check(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        return read_parquet(path)
    text, notes = read_text(path)
    if kind in conll.SUFFIXES or (kind == ".txt" and conll.looks_so(text)):
        rows = conll.read_conll(path, text)
    elif kind == ".json" and squad.looks_so(text):
        rows = squad.read_squad(path, text)
    elif kind in (".jsonl", ".ndjson"):
        rows = read_jsonl(path, text)
    elif kind == ".json":
        rows = read_json(path, text)
    elif kind == ".txt" and not tabular(text):
        rows = read_txt(path, text)
    else:
        rows = read_table(path, text, mapping(columns))
    return Rows(rows, (*notes, *rows.notes))


def check(path: Path) -> None:
    """The file exists, is a file, and is of a kind we read."""
    if path.is_dir():
        raise InputError(Problem("a folder, not a file", str(path), f"a file ending in {listed(KINDS)}"))
    if not path.exists():
        raise InputError(missing(path))
    if path.suffix.lower() not in KINDS:
        raise InputError(Problem("unknown kind of file", str(path), f"a name ending in {listed(KINDS)}",
                                 repr(path.suffix), f"rename or link it: {path.name}.txt for lines"))  # fmt: skip


def missing(path: Path) -> Problem:
    """A missing file, with the names near it in its folder."""
    folder = next(p for p in [path.parent, *path.parent.parents] if p.is_dir())
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    wanted = path.name if folder == path.parent else path.relative_to(folder).parts[0]
    near = get_close_matches(wanted, names, n=3, cutoff=0.5)
    fix = f"did you mean {listed(near)}?" if near else f"{folder} holds {listed(names)}"
    return Problem("no such file", str(path), fix=fix)


def from_memory(source: Iterable[Mapping[str, Any]]) -> Rows:
    items = list(source)
    raise_all(Problem("not a record", f"data:{i}", "a dict", type(item).__name__)
              for i, item in enumerate(items, 1) if not isinstance(item, Mapping))  # fmt: skip
    if not items:
        raise InputError(Problem("the data is empty", "data", "at least one dict", "0"))
    return Rows(Row(dict(item), f"data:{i}") for i, item in enumerate(items, 1))


def read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        records = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(Problem("broken parquet", str(path), got=str(error).splitlines()[0])) from error
    if not records:
        raise InputError(Problem("the file has no rows", str(path), "at least one row", "0"))
    return Rows(Row(record, f"{path}:{i}") for i, record in enumerate(records, 1))


def tabular(text: str) -> bool:
    tabs = {line.count("\t") for line in text.split("\n") if line.strip()}
    return len(tabs) == 1 and tabs != {0}


def read_txt(path: Path, text: str) -> Rows:
    lines = [line.rstrip("\r") for line in text.rstrip().split("\n")]
    if led := led_by_labels(path, lines):
        return led
    starts = [i for i, line in enumerate(lines) if line.strip() and (i == 0 or not lines[i - 1].strip())]
    if len(starts) <= 1:
        return Rows(Row({"text": line}, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip())
    rows = (Row({"text": block(lines[a:b])}, f"{path}:{a + 1}") for a, b in spans(starts, len(lines)))
    return Rows(rows, (f"{path}: one row per paragraph, as blank lines separate them",))


def led_by_labels(path: Path, lines: Sequence[str]) -> Rows | None:
    """`3 how far is it` or `__label__spam buy now` on every line: label and text, where there are few labels for the
    lines (numbered lines have as many numbers as lines)."""
    found = [(i, LED.fullmatch(line)) for i, line in enumerate(lines, 1) if line.strip()]
    if not all(match for _, match in found):
        return None
    pairs = [(i, match["label"], match["text"]) for i, match in found if match]
    labels = {label for _, label, _ in pairs}
    if not 2 <= len(labels) <= len(pairs) // 2:
        return None
    note = f"{path}: every line starts with one of {len(labels)} labels: read as label and text"
    return Rows((Row({"label": label, "text": text}, f"{path}:{i}") for i, label, text in pairs), (note,))


def block(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip()


def spans(starts: Sequence[int], end: int) -> Iterable[tuple[int, int]]:
    return zip(starts, [*starts[1:], end], strict=True)
