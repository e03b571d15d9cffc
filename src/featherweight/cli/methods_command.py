"""`fw methods`: the table of methods, drawn from their classes; `fw methods lora`: one of them in full."""

import inspect
import sys
from dataclasses import fields
from typing import Annotated, Any

from cyclopts import Parameter

from featherweight.cli.schema import methods, noun_keys
from featherweight.cli.screen import Shown
from featherweight.cli.value import described
from featherweight.core.errors import InputError, Problem, did_you_mean


def command(name: Annotated[str | None, Parameter(help="A method, for its equation and fields.")] = None, /) -> Shown:
    """The methods: paper, where each sits, its fields and defaults."""
    known = methods()
    if name is None:
        return table(known)
    if name.lower() not in known:
        raise InputError(Problem("unknown method", name, fix=did_you_mean(name.lower(), known)))
    return page(name.lower(), known[name.lower()])


def facts(method: Any) -> dict[str, Any]:
    """What the class says of itself."""
    made = method()
    return {
        "paper": method.paper, "place": method.place, "mergeable": method.mergeable, "identity": method.identity,
        "per_row": method.per_row, "lr": method.lr, "lr_source": method.lr_source,
        "fields": {f.name: plain(getattr(made, f.name)) for f in fields(method)},
    }  # fmt: skip


def table(known: dict[str, Any]) -> Shown:
    """One line per method."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("method", "where it sits", "targets", "merges", "lr", "paper"):
        shown.add_column(title, overflow="fold", min_width=16 if title == "paper" else None)
    found = {name: facts(method) for name, method in known.items()}
    for name, fact in found.items():
        targets = fact["fields"].get("targets", "")
        shown.add_row(name, fact["place"], ", ".join(targets) if isinstance(targets, list) else targets,
                      "yes" if fact["mergeable"] else "no", f"{fact['lr']:g}", fact["paper"])  # fmt: skip
    return Shown({"methods": found}, (shown, "fw methods NAME shows a method's equation and fields."))


def page(name: str, method: Any) -> Shown:
    """The module's docstring (equation, symbols, source) and the fields with their defaults."""
    about = inspect.getdoc(sys.modules[method.__module__]) or ""
    keys = noun_keys(method)
    lines = [f"  --method.{k.name.replace('_', '-')}  {described(k.kind)}  [{k.default!r}]" for k in keys.values()]
    doc = inspect.getdoc(method) or ""
    fact = facts(method)
    rate = f"Default learning rate {fact['lr']:g} ({fact['lr_source']})."
    screen = (
        about,
        "",
        f"fw train --method {name}",
        *lines,
        *(["", doc] if doc and "fields" in fact else []),
        "",
        rate,
    )
    return Shown({"name": name, "about": about, **fact}, screen)


def plain(value: Any) -> Any:
    """A default as JSON has it."""
    if isinstance(value, tuple | list):
        return list(value)
    return dict(value) if hasattr(value, "items") else value
