"""`fw templates`: the prompt templates by data set; one set's wording; rows of a file as they will be asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from featherweight.cli.base import pairs
from featherweight.cli.screen import Shown
from featherweight.core.errors import InputError, Problem

if TYPE_CHECKING:
    from featherweight.data.prompt_sets import Prompts


def command(
    name: Annotated[str | None, Parameter(help="A set, one of its templates, or a folder of .jinja files.")] = None,
    /,
    *,
    data: Annotated[str | None, Parameter(help="File or folder whose rows to show as they will be asked.")] = None,
    columns: Annotated[
        str | None, Parameter(help="Which column of it stands for a field: premise=text1,hypothesis=text2.")
    ] = None,
    samples: Annotated[int, Parameter(help="Rows to show.")] = 1,
) -> Shown:
    """The prompt templates: which sets there are, what one of them says, and how it words the rows of a file."""
    from featherweight.data.templates import prompts

    if samples < 1:
        raise InputError(Problem("wrong value", "--samples", "at least 1", str(samples)))
    if name is None:
        if data is not None:
            raise InputError(Problem("which templates?", "SET", fix="fw templates SET --data FILE"))
        return listing()
    found = prompts(name)
    return wordings(found) if data is None else asked(found, name, data, samples, pairs(columns))


def listing() -> Shown:
    """Every set with its templates, their fields and choices of labels."""
    from rich import box
    from rich.table import Table

    from featherweight.data.templates import prompts, template_sets

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("set", "templates", "fields"):
        table.add_column(column, overflow="fold")
    sets = {name: prompts(name) for name in template_sets()}
    for name, found in sets.items():
        table.add_row(name, ", ".join(found.templates), ", ".join(fields(found)))
    data = {name: {"templates": list(found.templates), "fields": fields(found)} for name, found in sets.items()}
    hint = "fw templates rte shows the wording; with --data FILE how it asks the rows of a file."
    return Shown({"sets": data}, (table, hint))


def fields(found: "Prompts") -> list[str]:
    """What the templates read of a row."""
    return sorted(set().union(*(wording.needs for wording in found.templates.values())))


def wordings(found: "Prompts") -> Shown:
    """The templates as their files have them."""
    pieces = [f"── {found.name}/{name}\n{w.source.rstrip()}\n" for name, w in found.templates.items()]
    if found.labels:
        pieces.append(f"labels, in the order of the choices: {', '.join(found.labels)}")
    texts = {name: wording.source for name, wording in found.templates.items()}
    return Shown({"set": found.name, "templates": texts, "labels": list(found.labels)}, tuple(pieces))


def asked(found: "Prompts", name: str | Path, data: str, samples: int, columns: dict[str, str] | None) -> Shown:
    """Rows of a file, by every template."""
    from featherweight.data.templates import prompted, raw

    splits, _ = raw(data, columns, [found])
    shown: list[dict[str, Any]] = []
    pieces: list[Any] = []
    for template in found.templates:
        made = prompted(splits, found.name if found.name != str(name) else name, template)
        rows = (made.train or made.valid or made.test)[:samples]
        shown += [{"template": template, "where": row.where, **row.fields} for row in rows]
        pieces += [piece(f"{found.name}/{template}", row) for row in rows]
    return Shown({"rows": shown}, tuple(pieces))


def piece(template: str, row: Any) -> str:
    """One row as a model is asked, its choices under it, the right one marked."""
    label = row.fields["label"]
    right = row.fields["choices"].index(label) if label in row.fields["choices"] else label
    lines = [f"  {'▶' if str(i) == str(right) else ' '} {text}" for i, text in enumerate(row.fields["choices"])]
    return "\n".join([f"── {template}   {row.where}", row.fields["text"], *lines, ""])
