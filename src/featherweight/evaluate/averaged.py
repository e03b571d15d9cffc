"""`averaged`: a model over every prompt template of a data set, each alone and all together.

    p(y | row) = 1/K Σ_k p(y | template_k(row))          the choices' probabilities, averaged over the K templates

How far the templates' accuracies lie apart is how much the wording decides; T-Few reports their median.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import Problem, raise_all
from featherweight.evaluate import run
from featherweight.evaluate.scores import Scores
from featherweight.evaluate.setting import task_of, tokenizer_of
from featherweight.evaluate.source import labelled

if TYPE_CHECKING:
    from torch import nn

    from featherweight.tasks.task import Task

Probabilities = list[list[float]]  # by row and choice


def averaged(
    model: nn.Module, source: Any, name: str | Path, task: Task | None = None, *, tokenizer: Any = None,
    batch: int = 32, length: int | None = None, split: str | None = None,
) -> Scores:  # fmt: skip
    """Accuracy of the averaged probabilities (`accuracy`), of each template (`accuracy/<template>`) and their `median`.

    `source` is a data set in its own columns, `name` its set of templates (`prompted`); the task is the model's own,
    else `Choices`. Raises InputError for bad rows, and where two templates offer a row unlike numbers of choices.
    """
    from featherweight.data.templates import prompted, prompts
    from featherweight.tasks.check import check_length

    tokenizer = tokenizer_of(model, tokenizer)
    found: dict[str, Probabilities] = {}
    for template in prompts(name).templates:
        shown, examples, shape = labelled(prompted(source, name, template), split)
        chosen = task_of(model, task, shape)
        rows = chosen.encode_all(examples, tokenizer, check_length(model, length))
        found[template] = run.predictions(model, chosen, rows, tokenizer, batch)
    check(found, [e.where for e in examples])
    references = [chosen.reference(e) for e in examples]
    alone = {f"accuracy/{t}": chosen.score(made, references)["accuracy"] for t, made in found.items()}
    together = chosen.score(mean(list(found.values())), references)["accuracy"]
    return Scores({"accuracy": together, "median": median(alone.values()), **alone}, len(references), split=shown)


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
