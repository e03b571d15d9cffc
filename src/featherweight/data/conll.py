"""CoNLL files as they are: a word and its columns per line, a blank line between sentences, the tag last.

    -DOCSTART- -X- O O

    EU      NNP  I-NP  I-ORG
    rejects VBZ  I-VP  O             (Tjong Kim Sang and De Meulder 2003)

A sentence is a row {tokens, tags}, at the line of its first word; columns between are `column2`, `column3`, ... of it.
Lines that start with # and have another number of columns are comments.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import Row, Rows

SUFFIXES = (".conll", ".iob", ".bio")
TAG = re.compile(r"O|[BIESLU]-\S+")
LINE = re.compile(r"^.*\S.*$", re.MULTILINE)
START = "-DOCSTART-"
Line = tuple[int, list[str]]


def columns_of(line: str) -> list[str]:
    """By tabs where there are any, else by spaces."""
    return [c.strip() for c in line.rstrip().split("\t")] if "\t" in line.strip() else line.split()


def looks_so(text: str) -> bool:
    """Whether a plain text is a CoNLL file: every line equally many columns, two at least, the last one a tag, and
    one of them begins or continues something."""
    wide, tagged = 0, False
    for match in LINE.finditer(text):
        columns = columns_of(match[0])
        if match[0].startswith(START):
            continue
        wide = wide or len(columns)
        if wide < 2 or len(columns) != wide or not TAG.fullmatch(columns[-1]):
            return False
        tagged = tagged or columns[-1] != "O"
    return tagged


def read_conll(path: Path, text: str) -> Rows:
    """Raises InputError over every line that has more or fewer columns than the first."""
    lines = [(i, columns_of(line)) for i, line in enumerate(text.split("\n"), 1)]
    wide = next((len(c) for _, c in lines if c != [""] and c and c[0] != START and not c[0].startswith("#")), 0)
    kept = [(i, c) for i, c in lines if not c or c == [""] or len(c) == wide or not c[0].startswith("#")]
    filled = [(i, c) for i, c in kept if c and c != [""] and c[0] != START]
    if not filled:
        raise InputError(Problem("the file has no sentence", str(path), "words with their tags, one a line"))
    raise_all(Problem("another number of columns", f"{path}:{i}", f"{wide} as in the first line", f"{len(c)}: "
                      f"{' '.join(c)[:40]}") for i, c in filled if len(c) != wide)  # fmt: skip
    note = () if wide > 1 else (f"{path}: one column: words without tags",)
    return Rows((sentence(path, part) for part in parts(kept)), note)


def parts(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Runs of filled lines."""
    held: list[Line] = []
    for i, columns in lines:
        if not columns or columns == [""] or columns[0] == START:
            if held:
                yield held
            held = []
        else:
            held.append((i, columns))
    if held:
        yield held


def sentence(path: Path, lines: Sequence[Line]) -> Row:
    by_column = list(zip(*(columns for _, columns in lines), strict=True))
    fields = {f"column{k}": list(values) for k, values in enumerate(by_column[1:-1], 2)}
    tags = {"tags": list(by_column[-1])} if len(by_column) > 1 else {}
    return Row({"tokens": list(by_column[0]), **tags, **fields}, f"{path}:{lines[0][0]}")
