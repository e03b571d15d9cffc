"""`fw methods`: the table of methods, drawn from their classes; `fw methods lora`: one of them in full."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.schema import methods, noun_keys
from featherweight.cli.screen import Shown
from featherweight.cli.value import described
from featherweight.core.errors import InputError, Problem, did_you_mean

LEGEND = (
    "merge: folds into plain weights; rows: may differ from row to row of a batch;",
    "PEFT: peft reads and writes it; lr: the default learning rate, for AdamW.",
    "fw methods NAME shows a method's equation and fields.",
)


def command(name: Annotated[str | None, Parameter(help="A method, for its equation and fields.")] = None, /) -> Shown:
    """The methods: paper, where each sits, its fields and defaults."""
    known = methods()
    if name is None:
        return table(known)
    if name.lower() not in known:
        raise InputError(Problem("unknown method", name, fix=did_you_mean(name.lower(), known)))
    return page(name.lower(), known[name.lower()])


def facts(method: Any) -> dict[str, Any]:
    """What the class says of itself; `peft` is the type under which peft reads and writes it, None for none."""
    from featherweight.checkpoint.peft.table import CODECS

    made = method()
    codec = CODECS.get(method)
    return {
        "paper": made.paper, "place": made.place, "mergeable": made.mergeable, "identity": made.identity,
        "near": made.near, "per_row": made.per_row, "lr": made.lr, "lr_source": made.lr_source,
        "peft": codec.peft_type if codec else None, "targets": targets(getattr(made, "targets", ())),
        "fields": {f.name: plain(getattr(made, f.name)) for f in fields(method)},
    }  # fmt: skip


def targets(value: Any) -> list[str]:
    """The default targets, one by one; none where the method has no choice or makes its own."""
    return [value] if isinstance(value, str) else list(value or ())


def start(fact: Mapping[str, Any]) -> str:
    """What attaching it does to the outputs, in words."""
    if not fact["identity"]:
        return "another function than the base's"
    return f"the base, within {fact['near']:g} of its largest output" if fact["near"] else "the base, bit for bit"


def table(known: Mapping[str, Any]) -> Shown:
    """A few lines per method."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=False)
    for title, least in (("method", 13), ("where it sits; paper; source of the rate", 30), ("targets", 10), ("can", 6),
                         ("lr", 6)):  # fmt: skip
        shown.add_column(title, overflow="fold", min_width=least)
    found = {name: facts(method) for name, method in known.items()}
    for name, fact in sorted(found.items()):
        about = f"{fact['place']}\n{fact['paper']}\nlr: {fact['lr_source']}"
        can = [word for word, key in (("merge", "mergeable"), ("rows", "per_row"), ("PEFT", "peft")) if fact[key]]
        shown.add_row(name, about, "\n".join(fact["targets"]), "\n".join(can), f"{fact['lr']:g}")
    return Shown({"methods": found}, (shown, *LEGEND))


def page(name: str, method: Any) -> Shown:
    """The module's docstring (equation, symbols, source), the fields with their defaults, and the facts."""
    about = inspect.getdoc(sys.modules[method.__module__]) or ""
    keys, notes = noun_keys(method), told(method)
    lines = [
        f"  --method.{k.name.replace('_', '-')}  {kind(k.kind)}  [{typed(k.default)}]"
        + (f"  {notes[k.name]}" if k.name in notes else "")
        for k in keys.values()
    ]
    doc = inspect.getdoc(method) or ""
    fact = facts(method)
    screen = (about, "", f"fw train --method {name}", *lines, *(["", doc] if doc else []), "", *summary(fact))
    return Shown({"name": name, "about": about, **fact}, screen)


def summary(fact: Mapping[str, Any]) -> Iterable[str]:
    """The traits, a line each."""
    merges = "Merges into plain weights" if fact["mergeable"] else "Cannot be merged: it stays an adapter"
    rows = "may differ from row to row of a batch" if fact["per_row"] else "is one for the whole batch"
    yield f"{merges}; {rows}. At the start it is {start(fact)}."
    yield f"PEFT: {fact['peft']}." if fact["peft"] else "PEFT has no such type: kept in our own format."
    yield f"Default learning rate {fact['lr']:g} ({fact['lr_source']})."


TYPED = {"Mapping": "table", "Sequence": "list", "Callable": ""}


def kind(hint: Any) -> str:
    """A field's type as a flag takes it; a predicate is Python's alone."""
    return " | ".join(filter(None, (TYPED.get(word, word) for word in described(hint).split(" | "))))


def typed(value: Any) -> str:
    """A default as it would be typed behind its flag."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)


def told(method: Any) -> dict[str, str]:
    """What the comments behind a method's fields say of them: field -> comment."""
    names = {f.name for f in fields(method)}
    lines = "".join(inspect.getsource(kind) for kind in reversed(method.__mro__) if "methods" in kind.__module__)
    found = re.findall(r"^    (\w+): [^#\n]*#[ ]*(?![ ]|noqa)(.+)$", lines, re.MULTILINE)
    return {name: about for name, about in found if name in names}


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value
