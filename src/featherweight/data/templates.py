"""Rows as a data set has them become a text with choices, in words that a model can rank, by prompt templates.

one template        rte/guarantee       every row by it
one a row           rte                 in turn, or drawn by a seed: as many rows as before
every template      rte                 each row as often as there are templates (what training takes)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from featherweight.core.errors import InputError, Problem, listed, raise_all
from featherweight.data.jsons import short
from featherweight.data.load import Data, collect, fitting, gather, named
from featherweight.data.names import plain_name
from featherweight.data.prompt_sets import HOME, Prompts, Wording, prompts, template_sets
from featherweight.data.raft import numbers_beside
from featherweight.data.rows import examples
from featherweight.data.shape import Shape, missing
from featherweight.data.slots import SLOT
from featherweight.data.types import Row, Rows

__all__ = ["HOME", "Prompts", "label_names", "prompted", "prompts", "raw", "template_sets", "trained_on"]

SHAPE = Shape("choices", {"text": "text", "choices": "choices", "label": "label"})
DRAWN = "/drawn"


def prompted(
    source: Any,
    name: str | Path | Prompts,
    template: str | None = None,
    *,
    seed: int | None = None,
    every: bool = False,
) -> Data:
    """`load` of a data set in its own columns, its rows rendered as text and choices by one `template` of the set
    `name` (or `name/template`), or by its templates: in turn, one a row drawn by the `seed`, or with `every` each
    training row by each of them. `"rte,cb"` names the sets of a mixture of files, in their order.

    Raises InputError over every row that lacks a field or has a label that the set does not know.
    """
    splits, weights = raw(source)
    sets = [prompts(part, template) for part in parts(name)]
    check_sources(sets, splits, name)
    problems: list[Problem] = []
    made = {
        split: rendered(rows, sets, chooser(seed, split, every and split == "train"), problems)
        for split, rows in splits.items()
    }
    raise_all(problems)
    for rows in made.values():
        collect(problems, examples, rows, fitting(rows, SHAPE))
    raise_all(problems)
    labelled = any(not missing(row.fields["label"]) for row in made.get("train") or next(iter(made.values())))
    shape = Shape(SHAPE.name, SHAPE.columns, labelled)
    notes = tuple(f"prompt templates of {one.name}: {listed(list(one.templates))}" for one in sets)
    return Data(**{"train": Rows(), **made}, shape=shape, weights=weights, notes=notes, name=named(source))


def trained_on(source: Any, template: str, seed: int) -> Data:
    """`prompted` for training: `rte/guarantee` one template, `rte` each row by each, `rte/drawn` one drawn for each."""
    drawn = template.endswith(DRAWN)
    return prompted(source, template.removesuffix(DRAWN), seed=seed if drawn else None, every=not drawn)


def parts(name: str | Path | Prompts) -> list[str | Path | Prompts]:
    """The sets of a mixture."""
    if isinstance(name, Path | Prompts):
        return [name]
    return [name] if Path(name).is_dir() else [part.strip() for part in name.split(",")]


def raw(source: Any) -> tuple[dict[str, Rows], tuple[float, ...] | None]:
    """Rows by split in their own columns, also those that are read already."""
    if isinstance(source, Rows):
        return {"train": source}, None
    if isinstance(source, Mapping) and source and all(isinstance(rows, Rows) for rows in source.values()):
        return dict(source), None
    return gather(source, {})  # columns are the templates' business


def check_sources(sets: Sequence[Prompts], splits: Mapping[str, Rows], name: Any) -> None:
    """Raise InputError where there are several sets, and not one for each file."""
    files = 1 + max((row.source for rows in splits.values() for row in rows), default=0)
    if len(sets) not in (1, files):
        raise InputError(Problem("templates and files do not match", str(name), f"one set, or {files}", str(len(sets))))


Chosen = Callable[[Sequence[str], int], Sequence[str]]


def chooser(seed: int | None, split: str, every: bool) -> Chosen:
    """Which of the templates write row i."""
    if every:
        return lambda names, i: names
    if seed is None:
        return lambda names, i: names[i % len(names) :][:1]
    return lambda names, i: [Random(f"{seed}/{split}/{i}").choice(names)]


def rendered(rows: Rows, sets: Sequence[Prompts], choose: Chosen, problems: list[Problem]) -> Rows:
    """Every row as {text, choices, label}."""
    numbers = [one.numbers or numbers_of(rows, i) for i, one in enumerate(sets)]
    made = []
    for i, row in enumerate(rows):
        at = row.source if len(sets) > 1 else 0
        fields = {plain_name(str(key)): value for key, value in row.fields.items()} | row.fields
        label = numbered(row, fields.get("label"), numbers[at], problems)
        given = {"mask": SLOT} | fields | ({"labels": list(Prompts("", {}, numbers[at]).labels)} if numbers[at] else {})
        for template in choose(list(sets[at].templates), i):
            text, choices = written(row, given, sets[at].templates[template], problems)
            made.append(Row({"text": text, "choices": choices, "label": label}, row.where, row.source))
    return Rows(made, rows.notes)


def label_names(splits: Mapping[str, Rows], name: str | Path | Prompts) -> tuple[str, ...]:
    """The names of a set's labels for these rows; none where they are numbers."""
    found = prompts(name)
    return Prompts("", {}, found.numbers or numbers_of(next(iter(splits.values())), 0)).labels


def numbers_of(rows: Rows, source: int) -> Mapping[str, int] | None:
    """The numbers of the labels that a task.json beside the rows' file has."""
    where = next((row.where for row in rows if row.source == source), "")
    return numbers_beside(Path(where.rpartition(":")[0]))


def written(row: Row, fields: dict[str, Any], wording: Wording, problems: list[Problem]) -> tuple[str, list[str]]:
    """What the template prints of a row, and the choices that it sets."""
    from jinja2 import TemplateError

    empty = sorted(name for name in wording.needs if name in fields and missing(fields[name]))
    columns = {plain_name(str(key)): str(key) for key in row.fields}
    found = [Problem("empty text", f"{row.where}:{columns.get(n, n)}", "text, for the template") for n in empty]
    problems.extend(p for p in found if p not in problems)
    if empty:
        return "", []
    try:
        module = wording.template.make_module({str(name): value for name, value in fields.items()})
        return str(module).strip(), [str(c) for c in module.choices]  # type: ignore[attr-defined]
    except (TemplateError, AttributeError, TypeError) as error:
        got = listed([str(name) for name in row.fields])
        problems.append(Problem("the template does not fit the row", row.where, str(error), f"fields {got}"))
        return "", []


def numbered(row: Row, label: Any, numbers: Mapping[str, int] | None, problems: list[Problem]) -> Any:
    """The number of the right choice; None in a row without a label."""
    from featherweight.tasks.labels import label_name

    if numbers is None or missing(label):
        return label
    if label_name(label) not in numbers:
        column = next((key for key in row.fields if plain_name(str(key)) == "label"), "label")
        known = listed(list(chain(numbers)))
        problems.append(Problem("no such label", f"{row.where}:{column}", f"one of {known}", short(label)))
    return numbers.get(label_name(label))
