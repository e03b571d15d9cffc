"""Rows as a data set has them become a text with choices, in words that a model can rank, by prompt templates.

one template        rte/guarantee       every row by it
one a row           rte                 in turn, or drawn by a seed: as many rows as before
every template      rte                 each row as often as there are templates (what training takes)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.data.jsons import short
from featherweight.data.load import Data, collect, fitting, gather, named
from featherweight.data.names import plain_name
from featherweight.data.prompt_sets import HOME, Prompts, Wording, prompts, template_sets
from featherweight.data.raft import numbers_beside
from featherweight.data.rows import examples
from featherweight.data.shape import Shape, absent, missing, pairs
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
    answers: bool = True,
    columns: Mapping[str, str] | str | None = None,
) -> Data:
    """`load` of a data set in its own columns, its rows rendered as text and choices by one `template` of the set
    `name` (or `name/template`), or by its templates: in turn, one a row drawn by the `seed`, or with `every` each
    training row by each of them. `"rte,cb"` names the sets of a mixture of files, in their order. Without `answers`
    labels are not looked at. `columns` says which of the file's columns stands for a field of the templates:
    `premise=text1,hypothesis=text2`.

    Raises InputError over every row that lacks a field or has a label that the set does not know, and once over a
    column that no row of a file has.
    """
    sets = [prompts(part, template) for part in parts(name)]
    splits, weights = raw(source, columns, sets)
    check_sources(sets, splits, name)
    problems: list[Problem] = []
    made = {
        split: rendered(rows, sets, chooser(seed, split, every and split == "train"), answers, problems)
        for split, rows in splits.items()
    }
    for rows in made.values():
        collect(problems, examples, rows, fitting(rows, SHAPE))
    raise_all(dict.fromkeys(problems))
    labelled = any(not missing(row.fields["label"]) for row in made.get("train") or next(iter(made.values())))
    shape = Shape(SHAPE.name, SHAPE.columns, labelled)
    notes = tuple(f"prompt templates of {one.name}: {listed(list(one.templates))}" for one in sets)
    return Data(**{"train": Rows(), **made}, shape=shape, weights=weights, notes=notes, name=named(source))


def trained_on(source: Any, template: str, seed: int, columns: Mapping[str, str] | str | None = None) -> Data:
    """`prompted` for training: `rte/guarantee` one template, `rte` each row by each, `rte/drawn` one drawn for each."""
    drawn, name = template.endswith(DRAWN), template.removesuffix(DRAWN)
    return prompted(source, name, seed=seed if drawn else None, every=not drawn, columns=columns)


def parts(name: str | Path | Prompts) -> list[str | Path | Prompts]:
    """The sets of a mixture."""
    if isinstance(name, Path | Prompts):
        return [name]
    return [name] if Path(name).is_dir() else [part.strip() for part in name.split(",")]


def raw(
    source: Any, columns: Mapping[str, str] | str | None = None, sets: Sequence[Prompts] = ()
) -> tuple[dict[str, Rows], tuple[float, ...] | None]:
    """Rows by split in their own columns, also those that are read already; mapped ones by the templates' names too."""
    if isinstance(source, Rows):
        splits, weights = {"train": source}, None
    elif isinstance(source, Mapping) and source and all(isinstance(rows, Rows) for rows in source.values()):
        splits, weights = dict(source), None
    else:
        splits, weights = gather(source, {})
    chosen = pairs(columns)
    raise_all(unknown(chosen, splits, sets))
    return ({split: mapped(rows, chosen) for split, rows in splits.items()} if chosen else splits), weights


def unknown(chosen: Mapping[str, str], splits: Mapping[str, Rows], sets: Sequence[Prompts]) -> list[Problem]:
    """Columns that no row has, and fields that none of the templates names."""
    texts = " ".join(w.source for one in sets for w in one.templates.values())
    named = [*dict.fromkeys(n for one in sets for w in one.templates.values() for n in sorted(w.needs)), "label"]
    seen = list(dict.fromkeys(str(key) for rows in splits.values() for row in rows for key in row.fields))
    fix = " (--template none reads the rows as they stand)"
    return absent(chosen, seen) + [
        Problem("the templates have no such field", f"columns.{field}", fix=did_you_mean(field, named) + fix)
        for field in chosen
        if sets and field != "label" and not re.search(rf"\b{re.escape(field)}\b", texts)
    ]


def mapped(rows: Rows, chosen: Mapping[str, str]) -> Rows:
    """The rows with the mapped columns under the templates' names as well."""
    made = (
        replace(
            row, fields=row.fields | {f: row.fields[column] for f, column in chosen.items() if column in row.fields}
        )
        for row in rows
    )
    return Rows(made, rows.notes)


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


def rendered(rows: Rows, sets: Sequence[Prompts], choose: Chosen, answers: bool, problems: list[Problem]) -> Rows:
    """Every row as {text, choices, label}; those that no template fits are left out, and named."""
    numbers = [one.numbers or numbers_of(rows, i) for i, one in enumerate(sets)]
    unfit = {i for i, one in enumerate(sets) if not fits(one, [r for r in rows if len(sets) == 1 or r.source == i],
                                                         problems)}  # fmt: skip
    made = []
    for i, row in enumerate(rows):
        at = row.source if len(sets) > 1 else 0
        if at in unfit:
            continue
        fields = {plain_name(str(key)): value for key, value in row.fields.items()} | row.fields
        given = {"mask": SLOT} | fields | ({"labels": list(Prompts("", {}, numbers[at]).labels)} if numbers[at] else {})
        found: list[Problem] = []
        for template in choose(list(sets[at].templates), i):
            text, choices, label = written(row, given, sets[at].templates[template], found)
            label = numbered(row, label, numbers[at], found) if answers else None
            made.append(Row({"text": text, "choices": choices, "label": label}, row.where, row.source))
        if found:
            problems.extend(dict.fromkeys(found))
            made = [one for one in made if one.where != row.where]
    return Rows(made, rows.notes)


def fits(one: Prompts, rows: Sequence[Row], problems: list[Problem]) -> bool:
    """Whether some row has each column that the templates print; else they are another data set's."""
    has = list(dict.fromkeys(str(key) for row in rows for key in row.fields))
    known = {"mask", *has, *map(plain_name, has)}
    lacking = sorted({name for wording in one.templates.values() for name in wording.always} - known)
    if not rows or not lacking:
        return True
    fix = "fw templates lists the sets and their columns; a folder of .jinja files of your own goes by its path"
    problems.append(Problem(f"no row has what the templates of {one.name} print", rows[0].where.rpartition(":")[0],
                            f"columns {listed(lacking)}", f"columns {listed(has)}", fix))  # fmt: skip
    return False


def label_names(splits: Mapping[str, Rows], name: str | Path | Prompts) -> tuple[str, ...]:
    """The names of a set's labels for these rows; none where they are numbers."""
    found = prompts(name)
    return Prompts("", {}, found.numbers or numbers_of(next(iter(splits.values())), 0)).labels


def numbers_of(rows: Rows, source: int) -> Mapping[str, int] | None:
    """The numbers of the labels that a task.json beside the rows' file has."""
    where = next((row.where for row in rows if row.source == source), "")
    return numbers_beside(Path(where.rpartition(":")[0]))


def written(row: Row, fields: dict[str, Any], wording: Wording, problems: list[Problem]) -> tuple[str, list[str], Any]:
    """What the template prints of a row, the choices that it sets, and the label: the row's, where it sets none."""
    from jinja2 import TemplateError, Undefined

    columns = {plain_name(str(key)): str(key) for key in row.fields}
    for name in sorted(n for n in wording.needs if missing(fields.get(n)) and (n in fields or n in wording.always)):
        what, got = ("empty text", "") if name in fields else ("missing field", "nothing")
        problems.append(Problem(what, f"{row.where}:{columns.get(name, name)}", "text, for the template", got))
    if problems:
        return "", [], fields.get("label")
    try:
        module = wording.template.make_module({str(name): value for name, value in fields.items()})
        label = getattr(module, "label", fields.get("label"))
        choices = [str(c) for c in module.choices]  # type: ignore[attr-defined]
        return str(module).strip(), choices, None if isinstance(label, Undefined) else label
    except (TemplateError, AttributeError, TypeError) as error:
        got = f"fields {listed([str(name) for name in row.fields])}"
        problems.append(Problem("the template does not fit the row", row.where, got=f"{error}; {got}"))
        return "", [], fields.get("label")


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
