"""`evaluate`: loss and metrics of a model on labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem
from featherweight.evaluate import run
from featherweight.evaluate.metrics import perplexity
from featherweight.evaluate.scores import Scores
from featherweight.evaluate.setting import lengths, task_of, tokenizer_of
from featherweight.evaluate.text import check_kind, text_scores
from featherweight.tasks.asking import asked
from featherweight.tasks.check import check_length

if TYPE_CHECKING:
    from torch import nn

    from featherweight.data.types import Encoded, Example
    from featherweight.tasks.task import Task

LOSS = ("loss",)
OWN = "task"  # among text metrics: what the task itself scores its texts by


def evaluate(
    model: nn.Module, data: Any, task: Task | None = None, *, tokenizer: Any = None, batch: int = 32,
    length: int | None = None, split: str | None = None, metrics: Sequence[str] = LOSS, columns: Any = None,
    told: run.Told = run.silent,
) -> Scores:  # fmt: skip
    """Scores on `data`: a path, a `Data`, a list of dicts or of Examples.

    Tasks with a head always give all their metrics. Generating tasks give the loss (nats per trained token) and its
    perplexity, and for each set of text metrics in `metrics` ("e2e", "rouge", "bleu", "exact") generate one text per
    distinct prompt and compare it with the answers of all rows that have this prompt; "task" is the task's own score of
    these texts, row by row. `batch` rows at a time, texts cut at `length` tokens (default: what the model has).
    `split` defaults to the first of test, valid, train with rows. `told` hears of each batch: rows done, rows in all.
    Raises InputError for rows that the task cannot take, all at once, and for a tokenizer of another model.
    """
    from featherweight.evaluate.source import labelled

    kinds = [kind for kind in metrics if kind != "loss"]
    name, examples, shape = labelled(data, split, columns)
    task, tokenizer = task_of(model, task, shape), tokenizer_of(model, tokenizer)
    for kind in kinds:
        if kind != OWN:
            check_kind(kind)
    if kinds and not task.generates:
        raise InputError(Problem("text metrics of a task without text", "metrics", repr(LOSS), repr(tuple(kinds))))
    scores = score(model, task, examples, tokenizer, batch=batch, length=length, told=told)
    if kinds:
        more = written(model, task, examples, tokenizer, kinds, batch, length, told)
        scores = replace(scores, values={**scores.values, **more})
    return replace(scores, split=name)


def score(
    model: nn.Module, task: Task, examples: Sequence[Example], tokenizer: Any, *, batch: int = 32,
    length: int | None = None, encoded: Sequence[Encoded] | None = None, told: run.Told = run.silent,
) -> Scores:  # fmt: skip
    """`evaluate` of examples without text metrics. `encoded` are the examples as `task.encode_all` makes them, for whom
    evaluates again and again (the training loop). Weights, modes and random numbers are left as they are."""
    rows = list(encoded or task.encode_all(examples, tokenizer, check_length(model, length)))
    bare = [e.where for e, row in zip(examples, rows, strict=True) if row.labels is None]
    if bare:
        raise InputError(*(Problem("nothing to compare with", where, "a labelled row") for where in bare))
    total, units, predictions = run.examine(model, task, rows, tokenizer, batch, told)
    if not units:
        fix = "raise length, or add answers"
        raise InputError(Problem("no row has a token with loss", rows[0].where, task.trains, fix=fix))
    mean = total / units
    references = [task.reference(e) for e in examples]
    values = {"perplexity": perplexity(mean)} if predictions is None else task.score(predictions, references)
    return Scores(values, len(rows), mean, truncated=sum(row.truncated > 0 for row in rows))


def written(
    model: nn.Module, task: Task, examples: Sequence[Example], tokenizer: Any, kinds: Sequence[str], batch: int,
    length: int | None, told: run.Told = run.silent,
) -> dict[str, float]:  # fmt: skip
    """Text metrics: one generation per distinct prompt against all answers to it."""
    grouped: dict[Any, tuple[Example, list[str]]] = {}
    for example in examples:
        reference = task.reference(example)
        if reference is None:
            raise InputError(Problem("no answer to compare a text with", example.where, "a prompt and its answer"))
        key = repr((asked(example).turns, example.messages[:-1]))
        grouped.setdefault(key, (example, []))[1].append(reference)
    rows = task.ask([example for example, _ in grouped.values()], tokenizer, lengths(model, task, length))
    texts = run.predictions(model, task, rows, tokenizer, batch, told)
    references = [answers for _, answers in grouped.values()]
    rows_ = [(text, answer) for text, answers in zip(texts, references, strict=True) for answer in answers]
    own = task.score(*zip(*rows_, strict=True)) if OWN in kinds else {}
    scored = [text_scores(texts, references, kind) for kind in kinds if kind != OWN]
    return {name: value for found in (*scored, own) for name, value in found.items()}
