"""Errors that say what is wrong, where, what was expected, what was got, and the way out: all of them at once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `where` is file:line:field, a tensor's name or a flag; empty parts are left out."""

    what: str
    where: str = ""
    expected: str = ""
    got: str = ""
    fix: str = ""

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = [head]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        if self.fix:
            parts.append(self.fix)
        return "; ".join(parts)


class FeatherweightError(Exception):
    """Something failed (exit code 1)."""


class InputError(FeatherweightError):
    """What the user gave is wrong (exit code 2); `problems` lists everything found, not only the first."""

    def __init__(self, *problems: Problem | str):
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        super().__init__("\n".join(map(str, self.problems)))


class NotMergeable(FeatherweightError):
    """An adapter that cannot be folded into weights was asked to."""


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise one InputError over all problems; do nothing when there are none."""
    found = tuple(problems)
    if found:
        raise InputError(*found)


def alike(problems: Iterable[Problem]) -> list[Problem]:
    """Problems that differ only in where they are, as one over all places; of `<place>: <field>` the field, and how
    many places.
    """
    places: dict[tuple[Problem, str], list[str]] = {}
    for p in problems:
        place, _, field = p.where.rpartition(": ")
        places.setdefault((replace(p, where=""), field if place else ""), []).append(place or field)
    return [replace(p, where=together(field, list(dict.fromkeys(at)))) for (p, field), at in places.items()]


def together(field: str, places: Sequence[str]) -> str:
    """One field, or none, at these places."""
    if not field:
        return listed(places)
    return f"{places[0]}: {field}" if len(places) == 1 else f"{field} ({len(places)} places, the first {places[0]})"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of choices where none is near."""
    known = list(dict.fromkeys(choices))
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"choose from {listed(known)}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """The names, comma-separated, cut at `most` with a count of the rest."""
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} … ({len(names) - most} more)" if len(names) > most else shown or "nothing"
