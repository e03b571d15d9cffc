"""Prompt templates: rows as a data set has them become a text with choices, in words that a model can rank.

    data/prompts/<set>/<template>.jinja     {%- set choices = ["yes", "no"] -%} Is it true that {{ hypothesis }}?
    data/prompts/<set>/labels.json          {"entailment": 0, "not_entailment": 1}    label -> number of its choice

A template names the row's fields; what it prints is the text, and `choices` that it sets are the answers. Without
labels.json a row's `label` is that number itself. A folder of one's own goes by its path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.data.jsons import short
from featherweight.data.load import Data, collect, fitting, gather
from featherweight.data.rows import examples
from featherweight.data.shape import Shape, missing
from featherweight.data.types import Row, Rows

if TYPE_CHECKING:
    from jinja2 import Template

HOME = Path(__file__).parent / "prompts"
SHAPE = Shape("choices", {"text": "text", "choices": "choices", "label": "label"})


@dataclass(frozen=True)
class Prompts:
    """The templates of one data set by name, in order, and the numbers of its labels (None: they are numbers)."""

    name: str
    templates: Mapping[str, Template]
    numbers: Mapping[str, int] | None


def prompts(name: str | Path) -> Prompts:
    """The templates of a data set of ours (`template_sets()`), or of a folder. Raises InputError for neither, and for
    every template that is broken."""
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    folder = HOME / name if str(name) in template_sets() else Path(name)
    files = sorted(folder.glob("*.jinja")) if folder.is_dir() else []
    if not files:
        fix = did_you_mean(str(name), template_sets())
        raise InputError(Problem("no prompt templates", str(name), "a data set or a folder of .jinja files", fix=fix))
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made, problems = {}, []
    for file in files:
        try:
            made[file.stem] = environment.from_string(file.read_text(encoding="utf-8"))
        except TemplateSyntaxError as error:
            problems.append(Problem("a broken template", f"{file}:{error.lineno}", got=str(error.message)))
    raise_all(problems)
    labels = folder / "labels.json"
    return Prompts(str(name), made, json.loads(labels.read_text(encoding="utf-8")) if labels.is_file() else None)


def template_sets() -> list[str]:
    """The data sets that there are templates for."""
    return sorted(p.name for p in HOME.iterdir() if p.is_dir())


def prompted(source: Any, name: str | Path, template: str | None = None) -> Data:
    """`load` of a data set in its own columns, its rows rendered as text and choices by one `template` of the set
    `name`, or by each of its templates in turn (None).

    Raises InputError over every row that lacks a field or has a label that the set does not know.
    """
    found = prompts(name)
    if template is not None and template not in found.templates:
        raise InputError(
            Problem("no such template", f"{name}: {template}", fix=did_you_mean(template, found.templates))
        )
    used = [found.templates[template]] if template is not None else list(found.templates.values())
    splits, weights = gather(source, None)
    problems: list[Problem] = []
    made = {split: rendered(rows, used, found, problems) for split, rows in splits.items()}
    raise_all(problems)
    for rows in made.values():
        collect(problems, examples, rows, fitting(rows, SHAPE))
    raise_all(problems)
    labelled = any(not missing(row.fields["label"]) for row in made["train"])
    shape = Shape(SHAPE.name, SHAPE.columns, labelled)
    shown = f"prompt templates of {name}: {listed([template] if template else list(found.templates))}"
    return Data(**{"train": Rows(), **made}, shape=shape, weights=weights, notes=(shown,))


def rendered(rows: Sequence[Row], used: Sequence[Template], prompts: Prompts, problems: list[Problem]) -> Rows:
    """Every row as {text, choices, label}, by the templates in turn."""
    made = []
    for i, row in enumerate(rows):
        text, choices = written(row, used[i % len(used)], problems)
        label = numbered(row, prompts, problems)
        made.append(Row({"text": text, "choices": choices, "label": label}, row.where, row.source))
    return Rows(made, getattr(rows, "notes", ()))


def written(row: Row, template: Template, problems: list[Problem]) -> tuple[str, list[str]]:
    """What the template prints of a row, and the choices that it sets."""
    from jinja2 import TemplateError

    fields = {str(name): value for name, value in row.fields.items()}
    try:
        module = template.make_module(fields)
        return str(module).strip(), [str(c) for c in module.choices]  # type: ignore[attr-defined]
    except (TemplateError, AttributeError, TypeError) as error:
        got = listed([str(name) for name in fields])
        problems.append(Problem("the template does not fit the row", row.where, str(error), f"fields {got}"))
        return "", []


def numbered(row: Row, prompts: Prompts, problems: list[Problem]) -> Any:
    """The number of the right choice; None in a row without a label."""
    from featherweight.tasks.labels import label_name

    label = row.fields.get("label")
    if prompts.numbers is None or missing(label):
        return label
    if label_name(label) not in prompts.numbers:
        known = listed(list(prompts.numbers))
        problems.append(Problem("no such label", f"{row.where}:label", f"one of {known}", short(label)))
    return prompts.numbers.get(label_name(label))
