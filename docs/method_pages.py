"""docs/methods/: a page for each method from its docstring, fields and traits, and the table of what applies where."""

import inspect
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "methods"
MADE = "<!-- made by docs/tables.py (make docs) from {}: change that, not this -->"

INDEX = """\
One paper, one file, one page. `fw methods` prints this table, `fw methods lora` a page. *rows*: may differ from row to
row of a batch; *PEFT*: the type under which peft reads and writes it; *lr*: the default learning rate, for AdamW.
[What applies where](applies.md) shows every method on nineteen architectures."""
APPLIES = """\
The number of modules adapted (of two blocks; a task's head is not counted), or the letter of the reason for which the
combination is refused with an error. Each number is held to every law of `tests/laws`."""


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def pages() -> Iterator[tuple[Path, str]]:
    """(page, its text) of the index and of every method; `applies` is apart, for it runs every model."""
    from featherweight.cli.schema import methods

    found = sorted(methods().values(), key=lambda m: m.__name__.lower())
    yield FOLDER / "README.md", index(found)
    for method in found:
        yield FOLDER / f"{method.__name__.lower()}.md", page(method)


def index(found: list[Any]) -> str:
    parts = [
        MADE.format("the classes in src/featherweight/methods"),
        "# Methods",
        INDEX,
        table(found, link=True),
    ]
    return "\n\n".join(parts) + "\n"


def table(found: list[Any], link: bool = False) -> str:
    """The table of methods, as README and the index have it."""
    from featherweight.cli.methods_command import facts

    rows = []
    for method in found:
        f = facts(method)
        name = f"[`{method.__name__}`]({method.__name__.lower()}.md)" if link else f"`{method.__name__}`"
        targets = f"`{cell(', '.join(f['targets']))}`" if f["targets"] else ""
        flags = ["yes" if f[k] else "no" for k in ("mergeable", "per_row")]
        rows.append([name, f["place"], targets, *flags, f["peft"] or "", f"{f['lr']:g}", f["paper"]])
    return markdown(["method", "where it sits", "targets", "merges", "rows", "PEFT", "lr", "paper"], rows)


def page(method: Any) -> str:
    from featherweight.cli.methods_command import facts, start, told
    from featherweight.cli.schema import noun_keys
    from featherweight.cli.value import described

    fact = facts(method)
    title, _, about = (inspect.getdoc(sys.modules[method.__module__]) or "").partition("\n")
    source = f"src/{method.__module__.replace('.', '/')}.py"
    own = inspect.getdoc(method) or ""
    rows = [
        ["where it sits", fact["place"]],
        ["default targets", ", ".join(f"`{cell(t)}`" for t in fact["targets"]) or "none to choose"],
        ["merges into plain weights", "yes" if fact["mergeable"] else "no"],
        ["at the start", start(fact)],
        ["may differ from row to row of a batch", "yes" if fact["per_row"] else "no"],
        ["PEFT", f"`{fact['peft']}`" if fact["peft"] else "not there: kept in our own format"],
        ["default learning rate", f"{fact['lr']:g} ({fact['lr_source']})"],
        ["paper", fact["paper"]],
    ]
    notes = told(method)
    options = [
        [f"`{key.name}`", cell(described(key.kind)), f"`{cell(repr(key.default))}`", cell(notes.get(key.name, ""))]
        for key in noun_keys(method).values()
    ]
    parts = [MADE.format(source), f"# {method.__name__}: {heading(title, method.__name__)}", fenced(about.strip("\n"))]
    parts += ["## Fields", own] if options else []
    parts += [markdown(["field", "type", "default", ""], options)] if options else []
    parts += ["## Facts", markdown(["", ""], rows), f"Source: [`{source}`](../../{source})"]
    return "\n\n".join(parts) + "\n"


def heading(title: str, name: str) -> str:
    """The docstring's first line, without a name that the heading has already."""
    return re.sub(rf"^{re.escape(name)}: ", "", title).rstrip(".")


def fenced(text: str) -> str:
    """Indented blocks of a docstring as fenced ones, so that nothing in them is taken for markup."""
    out: list[str] = []
    inside = False
    lines = text.split("\n")
    for i, line in enumerate(lines):
        code = line.startswith("    ") or (
            inside and not line and any(x.startswith("    ") for x in lines[i + 1 : i + 2])
        )
        if code != inside:
            out.append("```" if inside else "```text")
            inside = code
        out.append(line[4:] if code else line)
    return "\n".join([*out, "```"] if inside else out).replace("\n```\n\n```text\n", "\n\n")


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def applies() -> str:
    """Every case of the law suite tried on every architecture: the number of modules adapted, or why it is refused."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.applies import reason, tried, written
    from support.cases import METHODS
    from support.models import EVERY

    letters: dict[str, str] = {}
    rows = []
    for name, method in METHODS.items():
        cells = []
        for arch in EVERY:
            found = tried(method, arch)
            if isinstance(found, int):
                cells.append(str(found))
            else:
                why = reason(found, method, arch)
                cells.append(letters.setdefault(why, string.ascii_letters[len(letters)]))
        rows.append([f"`{name}`", f"`{written(method)}`", *cells])
    parts = [
        MADE.format("trying each on tiny random models"),
        "# What applies where",
        APPLIES,
        markdown(["case", "method", *EVERY], rows),
        "\n".join(f"* **{letter}** {why}" for why, letter in letters.items()),
    ]
    return "\n\n".join(parts) + "\n"
