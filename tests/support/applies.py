"""Which method applies to which architecture: the table in docs/methods/applies.md, and the trying that makes it."""

import re
from functools import cache
from pathlib import Path

from torch import nn

import featherweight as fw
from featherweight.core.method import Method
from featherweight.core.state import adapters
from support.models import EVERY, labelled, tiny

TABLE = Path(__file__).parents[2] / "docs" / "methods" / "applies.md"


def prepared(model: nn.Module, method: Method, arch: str, name: str) -> nn.Module:
    """Give a method that starts from data its data."""
    if type(method).prepare is not Method.prepare:
        dtype = next(model.parameters()).dtype
        batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in labelled(arch).items()}
        fw.prepare(model, [batch], name=name)
    return model


def tried(method: Method, arch: str) -> int | fw.InputError:
    """How many modules the method adapts, or the error that refuses it."""
    key = (written(method), arch)
    if key not in known:
        model = tiny(arch)
        try:
            prepared(fw.attach(model, method, "a", head=False), method, arch, "a")
            known[key] = len(adapters(model, "a"))
        except fw.InputError as error:
            known[key] = error
    return known[key]


known: dict[tuple[str, str], int | fw.InputError] = {}


@cache
def table() -> dict[tuple[str, str], dict[str, str]]:
    """(case, its method as written) -> architecture -> cell of the committed table."""
    text = TABLE.read_text() if TABLE.exists() else ""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {(name.strip("`"), form.strip("`")): dict(zip(EVERY, cells, strict=True)) for name, form, *cells in rows}


def refusal(name: str, method: Method, arch: str) -> str | None:
    """Why a case is refused on an architecture, None where it works: from the table, tried where it has no such row."""
    row = table().get((name, written(method)))
    if row is not None:
        return None if row[arch].isdigit() else row[arch]
    found = tried(method, arch)
    return None if isinstance(found, int) else reason(found, method, arch)


def written(method: Method) -> str:
    """A method as its table shows it."""
    return repr(method).replace("|", "\\|")


def reason(error: fw.InputError, method: Method, arch: str) -> str:
    """The first problem in short, without what differs from case to case."""
    what = error.problems[0].what.replace(repr(method), "it")
    what = re.sub(r"^\w*Attention ", "its attention ", what.replace(f" in {type(tiny(arch)).__name__}", ""))
    return re.sub(r"\s+", " ", what)
