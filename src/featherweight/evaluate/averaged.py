"""`averaged`: a model over every prompt template of a data set, each alone and all together.

    p(y | row) = 1/K Σ_k p(y | template_k(row))          the choices' probabilities, averaged over the K templates

How far the templates' accuracies lie apart is how much the wording decides; T-Few reports their median.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.evaluate import run
from featherweight.evaluate.scores import Scores
from featherweight.evaluate.setting import task_of, tokenizer_of
from featherweight.evaluate.source import Columns, labelled

if TYPE_CHECKING:
    from torch import nn

    from featherweight.data.prompt_sets import Prompts
    from featherweight.data.types import Example
    from featherweight.tasks.task import Task

Probabilities = list[list[float]]  # by row and choice


@dataclass(frozen=True)
class Asked:
    """What a model says of rows: probabilities by template, with the examples of the last one."""

    task: Task
    examples: list[Example]
    found: dict[str, Probabilities]
    names: tuple[str, ...]  # of the labels; empty where they are numbers
    split: str

    @property
    def together(self) -> Probabilities:
        return mean(list(self.found.values()))


def averaged(
    model: nn.Module, source: Any, name: str | Path | Prompts, task: Task | None = None, *, tokenizer: Any = None,
    batch: int = 32, length: int | None = None, split: str | None = None, columns: Columns = None,
    told: run.Told = run.silent,
) -> Scores:  # fmt: skip
    """Accuracy of the averaged probabilities (`accuracy`), of each template (`accuracy/<template>`) and their `median`.

    `source` is a data set in its own columns, `name` its set of templates or one of them, `columns` those of the file
    that stand for the templates' fields (`prompted`); the task is the model's own, else the one for choices. Raises
    InputError for bad rows, and where two templates offer a row unlike numbers of choices.
    """
    asked = ask(model, source, name, task, tokenizer=tokenizer, batch=batch, length=length, split=split, labels=True,
                columns=columns, told=told)  # fmt: skip
    chosen, references = asked.task, [asked.task.reference(e) for e in asked.examples]
    alone = {f"accuracy/{t}": chosen.score(made, references)["accuracy"] for t, made in asked.found.items()}
    together = chosen.score(asked.together, references)["accuracy"]
    return Scores({"accuracy": together, "median": median(alone.values()), **alone}, len(references), split=asked.split)


def answers(
    model: nn.Module, source: Any, name: str | Path | Prompts, task: Task | None = None, *, tokenizer: Any = None,
    batch: int = 32, length: int | None = None, columns: Columns = None, told: run.Told = run.silent,
) -> list[dict[str, Any]]:  # fmt: skip
    """The answer to each row, labelled or not, by the probabilities averaged over the templates: {label, probability,
    probabilities}, the label by its name where the set of templates has names."""
    asked = ask(model, source, name, task, tokenizer=tokenizer, batch=batch, length=length, columns=columns,
                told=told)  # fmt: skip
    made = [asked.task.answer(p) for p in asked.together]
    return [a | {"label": asked.names[a["label"]]} for a in made] if asked.names else made


def ask(
    model: nn.Module, source: Any, name: str | Path | Prompts, task: Task | None = None, *, tokenizer: Any = None,
    batch: int = 32, length: int | None = None, split: str | None = None, labels: bool = False,
    columns: Columns = None, told: run.Told = run.silent,
) -> Asked:  # fmt: skip
    """The probability of each choice of each row, by template; `labels`: rows without one are an error."""
    from featherweight.data.load import collect
    from featherweight.data.templates import label_names, parts, prompted, prompts, raw
    from featherweight.tasks.check import check_length

    tokenizer = tokenizer_of(model, tokenizer)
    rows, _ = raw(source, columns, [prompts(part) for part in parts(name)])
    problems: list[Problem] = []
    asked_by = {template: collect(problems, prompted, rows, name, template, answers=labels)
                for template in prompts(name).templates}  # fmt: skip
    raise_all(dict.fromkeys(problems))
    found: dict[str, Probabilities] = {}
    for template, data in asked_by.items():
        shown, examples, shape = read(data, split, labels)
        chosen = task_of(model, task, shape)
        asked = chosen.encode_all(examples, tokenizer, check_length(model, length))
        found[template] = run.predictions(model, chosen, asked, tokenizer, batch, told)
    check(found, [e.where for e in examples])
    file = isinstance(source, str | Path) and Path(source).is_file()
    return Asked(chosen, examples, found, label_names(rows, name), Path(source).name if file else shown)


def read(data: Any, split: str | None, labels: bool) -> tuple[str, list[Example], Any]:
    """(name, examples, shape) of the rows to ask: labelled ones as `evaluate` finds them, else those that there are."""
    if labels:
        return labelled(data, split)
    from featherweight.data.load import fitting
    from featherweight.data.rows import examples

    held = {part: rows for part in ("test", "valid", "train") if (rows := getattr(data, part))}
    if not held:
        raise InputError(Problem("no rows to answer", "data"))
    part = next(iter(held))
    return part, examples(held[part], fitting(held[part], data.shape)), data.shape


def mean(found: list[Probabilities]) -> Probabilities:
    """The mean over templates of each row's probabilities."""
    return [[sum(p) / len(p) for p in zip(*rows, strict=True)] for rows in zip(*found, strict=True)]


def check(found: dict[str, Probabilities], wheres: list[str]) -> None:
    """Raise InputError where templates cannot be averaged."""
    counts = [{template: len(made[i]) for template, made in found.items()} for i in range(len(wheres))]
    raise_all(
        Problem("the templates offer unlike numbers of choices", where, "as many in each", str(count))
        for where, count in zip(wheres, counts, strict=True)
        if len(set(count.values())) > 1
    )
