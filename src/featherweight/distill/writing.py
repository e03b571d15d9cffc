"""Batches whose answers a model wrote: the prompts of a batch, and behind them what it generates.

    given    <s> ask: …  answer: a b c </s>
    shown    <s> ask: …  answer: x y </s>             labels on x y </s> alone

A row without a prompt keeps its first token as one. No gradient flows through what was drawn, dropout is off while it
is drawn, and the drawing uses torch's generator, which a run seeds for every step: it is the same again after a resume.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.errors import InputError, Problem
from featherweight.distill.recipes.recipe import Batch, Writers
from featherweight.tasks.check import pad_id, position_limit
from featherweight.tasks.generation import left_padded, prompts, run
from featherweight.tasks.modes import evaluating, inner
from featherweight.tasks.task import Task
from featherweight.tasks.token_loss import IGNORED

# What a model's own generation config may have set, and must not hold here: samples are those of its distribution.
PLAIN = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}


def writers(task: Task, student: nn.Module, pair: Any) -> Writers:
    """Both models as writers of batches."""

    def taught(batch: Batch, new: int, **options: Any) -> Batch:
        with pair.teaching():
            return written(pair.teacher, student, batch, new, **options)

    return Writers(partial(by_student, student), taught)


def by_student(student: nn.Module, batch: Batch, new: int, **options: Any) -> Batch:
    return written(student, student, batch, new, **options)


@torch.no_grad()
def written(model: nn.Module, student: nn.Module, batch: Batch, new: int, **options: Any) -> dict[str, Tensor]:
    """The batch with answers of at most `new` tokens by `model`, with the student's tokenizer."""
    if "position_ids" in batch:
        raise InputError(Problem("packed rows have no prompts of their own", "packing", fix="leave it out"))
    tokenizer = getattr(inner(student), "tokenizer", None)
    pad, core = pad_id(model, tokenizer), inner(model)
    options = {**PLAIN, **options}
    with evaluating(model):
        if getattr(core.config, "is_encoder_decoder", False):
            return decoded(batch, run(model, batch["input_ids"], batch["attention_mask"], pad, new, options), core)
        given = [row or first for row, first in zip(prompts(batch), batch["input_ids"][:, :1].tolist(), strict=True)]
        ids, mask = left_padded(given, pad)
        out = run(model, ids, mask, pad, min(new, room(model, ids.shape[1])), options)
    answers = [answer(row, ends(core)) for row in out[:, ids.shape[1] :].tolist()]
    return joined(given, answers, pad, batch["input_ids"].device)


def room(model: nn.Module, used: int) -> int:
    """Positions left behind a prompt. Raises InputError where there is none."""
    limit = position_limit(model)
    if limit is not None and used >= limit:
        raise InputError(Problem("a prompt leaves no room for an answer", "length", f"below {limit} tokens", str(used)))
    return 1 << 30 if limit is None else limit - used


def ends(model: Any) -> set[int]:
    """The tokens at which `generate` stops."""
    found = model.generation_config.eos_token_id
    return set(found if isinstance(found, list) else [] if found is None else [found])


def answer(ids: list[int], ends: set[int]) -> list[int]:
    """Up to the first end, with it: what follows is padding."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]


def joined(given: list[list[int]], answers: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Prompts and answers, padded on the right as in data, labels on the answers."""
    rows = [p + a for p, a in zip(given, answers, strict=True)]
    width = max(map(len, rows))

    def table(lists: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (width - len(row)) for row in lists], device=device)

    labels = [[IGNORED] * len(p) + a for p, a in zip(given, answers, strict=True)]
    return {"input_ids": table(rows, pad), "attention_mask": table([[1] * len(r) for r in rows], 0),
            "labels": table(labels, IGNORED)}  # fmt: skip


def decoded(batch: Mapping[str, Tensor], out: Tensor, model: Any) -> dict[str, Tensor]:
    """An encoder-decoder's batch with the decoder's tokens, after its start, as labels."""
    answers = [answer(row, ends(model)) for row in out[:, 1:].tolist()]
    width = max(map(len, answers))
    labels = torch.tensor([a + [IGNORED] * (width - len(a)) for a in answers], device=batch["input_ids"].device)
    return {**batch, "labels": labels}
