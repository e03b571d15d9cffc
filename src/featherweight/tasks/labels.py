"""Label names: how the values of a data file become the strings that a model's outputs are called."""

from collections.abc import Iterable, Sequence
from typing import Any

from featherweight.core.errors import Problem, did_you_mean, listed


def label_name(value: Any) -> str:
    """A label as text: 1, 1.0 and "1" are one label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels in order: by number where all are whole numbers ("2" before "10"), else by text."""
    found = set(names)
    digits = all(name.lstrip("-").isdecimal() for name in found)
    return tuple(sorted(found, key=int) if digits else sorted(found))


def unseen(name: str, labels: Sequence[str], where: str) -> Problem:
    """The problem of a label that the training data did not have."""
    near = did_you_mean(name, labels)
    fix = "" if near.startswith("choose") else near  # they are all named already
    return Problem("label unseen in training", where, f"one of {listed(labels)}", repr(name), fix)
