"""The flags of `fw train`: `--method.rank 8`, `--method.rank=8`, `--resume`, `--no-buckets`; - and _ are the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from featherweight.cli.schema import Key, is_field, switches
from featherweight.cli.value import Value
from featherweight.core.errors import Problem

OPEN = ("columns.", "over.")  # tables whose entries are the user's own names


def read_flags(tokens: Sequence[str], keys: Mapping[str, Key]) -> tuple[Path | None, list[Value], list[Problem]]:
    """The configuration file (the one word that is no flag), the values, and what is wrong with the line itself."""
    file: Path | None = None
    values: list[Value] = []
    problems: list[Problem] = []
    rest = list(tokens)
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and len(word) > 2:
            value = one(word, rest, keys)
            (problems if isinstance(value, Problem) else values).append(value)  # type: ignore[arg-type]
        elif file is None and not word.startswith("-"):
            file = Path(word)
        else:
            problems.append(Problem("a word too many", got=repr(word), fix="flags start with two dashes"))
    return file, values, problems


def one(word: str, rest: list[str], keys: Mapping[str, Key]) -> Value | Problem:
    """One flag, and its value taken from the rest where it has one."""
    flag, joined, text = word.partition("=")
    key = normal(flag[2:])
    if joined:
        return Value(key, text, flag, flag=True)
    switch = key in keys and is_switch(keys[key].kind)
    if key.startswith("no_") and key[3:] in keys and is_switch(keys[key[3:]].kind):
        return Value(key[3:], "false", flag, flag=True)
    if switch and not (rest and rest[0].lower() in ("true", "false")):
        return Value(key, "true", flag, flag=True)
    if not rest or rest[0].startswith("--"):
        if switches(key):
            return Value(key, "true", flag, flag=True)
        if known(key, keys):
            return Problem("a value is missing", flag)
        return Value(key, "true", flag, flag=True)
    return Value(key, rest.pop(0), flag, flag=True)


def known(key: str, keys: Mapping[str, Key]) -> bool:
    """Whether a key, or the entry of a table, is one that takes a value; misspelt ones get a did-you-mean later."""
    entry = key.startswith(OPEN) or key.endswith((".type", ".targets", ".skip"))
    return key in keys or entry or is_field(key)


def normal(key: str) -> str:
    """`Method.rank-pattern` and `method.rank_pattern` are one key; the entries of a table keep their spelling."""
    head, dot, entry = key.partition(".")
    head = head.replace("-", "_")
    return head + dot + (entry if f"{head}." in OPEN else entry.replace("-", "_"))


def is_switch(kind: Any) -> bool:
    return kind is bool or bool in get_args(kind)
