"""Sets of prompt templates: a folder of Jinja files for one data set, and the numbers of its labels.

    data/prompts/<set>/<template>.jinja     {%- set choices = ["yes", "no"] -%} Is it true that {{ hypothesis }}?
    data/prompts/<set>/labels.json          {"entailment": 0, "not_entailment": 1}    label -> number of its choice

A template names the row's fields (`Paper title` as `paper_title`); what it prints is the text, and `choices` that it
sets are the answers; `labels` are the labels' names in order, `mask` the slot of a masked language model. `label` that
it sets stands in place of the row's own: {% set label = desk %} where that is the column. Without labels.json a row's
label is that number itself, unless a task.json beside the data names the labels, as RAFT's do. A folder of one's own
goes by its path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem, did_you_mean, raise_all

if TYPE_CHECKING:
    from jinja2 import Environment, Template

HOME = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Wording:
    """One template: what renders it, its text, the fields that it prints whatever they hold, and those of them that it
    prints in any row."""

    template: Template
    source: str
    needs: frozenset[str]
    always: frozenset[str]


@dataclass(frozen=True)
class Prompts:
    """The templates of one data set by name, in order, and the numbers of its labels (None: they are numbers)."""

    name: str
    templates: Mapping[str, Wording]
    numbers: Mapping[str, int] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels by number, the first of several."""
        first: dict[int, str] = {}
        for name, number in (self.numbers or {}).items():
            first.setdefault(number, name)
        return tuple(first[i] for i in sorted(first))

    def only(self, template: str | None) -> Prompts:
        """The set with one template, or (None) with all. Raises InputError for one that it has not."""
        if template is None:
            return self
        if template not in self.templates:
            fix = did_you_mean(template, self.templates)
            raise InputError(Problem("no such template", f"{self.name}: {template}", fix=fix))
        return replace(self, templates={template: self.templates[template]})


def prompts(name: str | Path | Prompts, template: str | None = None) -> Prompts:
    """The templates of a data set of ours (`template_sets()`), or of a folder; `rte/guarantee` is one of them. Raises
    InputError for neither, and for every template that is broken."""
    if isinstance(name, Prompts):
        return name.only(template)
    folder, inside = place_of(name)
    files = sorted(folder.glob("*.jinja")) if folder.is_dir() else []
    if not files:
        fix = did_you_mean(str(name).split("/")[0], template_sets())
        raise InputError(Problem("no prompt templates", str(name), "a data set or a folder of .jinja files", fix=fix))
    made, problems, environment = {}, [], sandbox()
    for file in files:
        wording = read(environment, file)
        if isinstance(wording, Problem):
            problems.append(wording)
        else:
            made[file.stem] = wording
    numbers = numbers_in(folder / "labels.json", problems)
    raise_all(problems)
    shown = str(name).rpartition("/")[0] if inside is not None else str(name)
    return Prompts(shown, made, numbers).only(template or inside)


def numbers_in(file: Path, problems: list[Problem]) -> Mapping[str, int] | None:
    """The numbers of the labels, None without the file."""
    if not file.is_file():
        return None
    wanted = '{"label": number of its choice from 0, …}'
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        problems.append(Problem("broken JSON", f"{file}{line}", wanted, str(error)))
        return None
    pairs = found.items() if isinstance(found, dict) else ()
    wrong = {k: v for k, v in pairs if isinstance(v, bool) or not isinstance(v, int) or v < 0}
    if wrong or not pairs or sorted(set(found.values())) != list(range(len(set(found.values())))):
        problems.append(Problem("not the numbers of labels", str(file), wanted, json.dumps(wrong or found)))
        return None
    return found


def place_of(name: str | Path) -> tuple[Path, str | None]:
    """The folder of a set, and the template inside of it that the name ends with."""
    head, _, tail = str(name).rpartition("/")
    for whole, inside in ((str(name), None), (head, tail.removesuffix(".jinja"))):
        if whole in template_sets():
            return HOME / whole, inside
        if whole and Path(whole).is_dir() and any(Path(whole).glob("*.jinja")):
            return Path(whole), inside
    return Path(name), None


def template_sets() -> list[str]:
    """The data sets that there are templates for."""
    return sorted(p.name for p in HOME.iterdir() if p.is_dir())


def sandbox() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def read(environment: Environment, file: Path) -> Wording | Problem:
    """The template in a file, or what is wrong with it."""
    from jinja2 import TemplateSyntaxError

    source = file.read_text(encoding="utf-8")
    try:
        tree = environment.parse(source)
        if "choices" not in set_in(tree):
            return Problem("the template sets no choices", str(file), '{% set choices = ["no", "yes"] %}')
        return Wording(environment.from_string(source), source, *needed(tree))
    except TemplateSyntaxError as error:
        return Problem("a broken template", f"{file}:{error.lineno}", got=str(error.message))


def set_in(tree: Any) -> set[str]:
    """The names that a template sets."""
    from jinja2 import nodes

    return names_in([n.target for n in tree.find_all((nodes.Assign, nodes.AssignBlock))])


def needed(tree: Any) -> tuple[frozenset[str], frozenset[str]]:
    """The fields that a template prints unasked, and those outside of any branch: what it asks about (`if abstract`),
    and what it takes the label from, may be empty."""
    from jinja2 import meta, nodes

    tree.body = [n for n in tree.body if not (isinstance(n, nodes.Assign) and getattr(n.target, "name", "") == "label")]
    branching = list(tree.find_all((nodes.If, nodes.CondExpr)))
    asked = names_in([n.test for n in branching] + [n.left for n in tree.find_all(nodes.Or)])
    needs = frozenset(meta.find_undeclared_variables(tree)) - asked - {"labels"}
    return needs, needs - names_in(branching)


def names_in(found: Sequence[Any]) -> set[str]:
    """The names in and at these nodes."""
    from jinja2 import nodes

    return {n.name for node in found for n in [node, *node.find_all(nodes.Name)] if isinstance(n, nodes.Name)}
