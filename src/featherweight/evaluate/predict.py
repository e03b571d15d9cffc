"""`predict` and `generate`: answers for rows without labels, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import InputError, Problem
from featherweight.evaluate import run
from featherweight.evaluate.setting import lengths, task_of, tokenizer_of
from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn

    from featherweight.tasks.task import Task


def predict(
    model: nn.Module, rows: Any, task: Task | None = None, *, tokenizer: Any = None, batch: int = 32,
    length: int | None = None, columns: Any = None, told: run.Told = run.silent,
) -> list[dict[str, Any]]:  # fmt: skip
    """The task's answer to each row, in order: {label, probability, probabilities}, {labels, probabilities}, {score} or
    {text}.

    `rows` is a file, or texts, dicts or Examples; labels in them are not read. Raises InputError for bad rows, all at
    once, a model without a task, or a tokenizer of another model.
    """
    from featherweight.evaluate.source import questions

    examples = questions(rows, columns)
    task, tokenizer = task_of(model, task), tokenizer_of(model, tokenizer)
    encoded = task.ask(examples, tokenizer, lengths(model, task, length))
    made = run.predictions(model, task, encoded, tokenizer, batch, told)
    return [task.told(p, e) for p, e in zip(made, examples, strict=True)]


def generate(
    model: nn.Module, prompts: Sequence[str], *, tokenizer: Any = None, max_new_tokens: int = 128, batch: int = 32,
    **options: Any,
) -> list[str]:  # fmt: skip
    """The text that the model writes after (encoder-decoders: for) each prompt, greedy unless `options` of
    transformers' `generate` say else. Raises InputError for an empty prompt or one that leaves no room."""
    from featherweight.evaluate.source import questions
    from featherweight.tasks import CausalLM, Seq2Seq
    from featherweight.tasks.generation import write

    if isinstance(prompts, str) or not all(isinstance(p, str) and p for p in prompts):
        raise InputError(Problem("not a list of prompts", "prompts", "texts, none of them empty", repr(prompts)[:80]))
    tokenizer = tokenizer_of(model, tokenizer)
    kind = Seq2Seq if getattr(inner(model).config, "is_encoder_decoder", False) else CausalLM
    rows = kind().ask(questions(prompts), tokenizer, None)
    made = [""] * len(rows)
    with run.answering(model):
        for numbers, tensors in run.batches(model, rows, tokenizer, batch):
            texts = write(model, tensors, tokenizer, max_new_tokens, **options)
            for number, text in zip(numbers, texts, strict=True):
                made[number] = text
    return made
