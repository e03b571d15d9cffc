"""Text from token ids, a batch at a time: prompts are padded on the left, where the next token is appended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.core.errors import InputError, Problem
from featherweight.core.room import taken
from featherweight.kernels.few import few_rows
from featherweight.tasks.check import beside, pad_id, position_limit
from featherweight.tasks.modes import inner

if TYPE_CHECKING:
    from torch import nn

TAIL = 4  # tokens that are read beside as many as the text to stop at has letters


def continue_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], tokenizer: Any, max_new_tokens: int, /, **options: Any
) -> list[str]:
    """The text that a causal model appends to each prompt (token ids), greedy unless `options` of `generate` say else.

    A model of few positions gets as many new tokens as fit; a prompt that leaves no room is an InputError.
    """
    pad = pad_id(model, tokenizer)
    ids, mask = left_padded(prompts, pad)
    limit = position_limit(model)
    room = max_new_tokens if limit is None else min(max_new_tokens, limit - ids.shape[1])
    if room < 1 or not all(prompts):
        less = beside(limit, taken(inner(model)))
        raise InputError(Problem("cannot generate", "prompt", f"1 to {(limit or 2) - 1} tokens{less}",
                                 f"{min(map(len, prompts))} to {ids.shape[1]}"))  # fmt: skip
    out = run(model, ids, mask, pad, room, options)
    return decoded(out[:, ids.shape[1] :], tokenizer)


def prompts(batch: Mapping[str, Tensor]) -> list[list[int]]:
    """The ids of each row in front of its last answer (the last run of trained tokens): all where none is trained."""
    ids = batch["input_ids"]  # (batch, seq)
    real = batch.get("attention_mask", torch.ones_like(ids)) > 0
    trained = batch.get("labels", torch.full_like(ids, -100)) != -100
    rows = []
    for row, mask, answer in zip(ids, real, trained, strict=True):
        starts = answer & ~torch.cat([answer[:1] & False, answer[:-1]])
        end = int(starts.nonzero()[-1]) if answer.any() else len(row)
        rows.append(row[:end][mask[:end]].tolist())
    return rows


def transform(
    model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any, max_new_tokens: int, /, **options: Any
) -> list[str]:
    """The text that an encoder-decoder makes of each row of the batch."""
    given = batch["input_ids"], batch["attention_mask"]
    return decoded(run(model, *given, pad_id(model, tokenizer), max_new_tokens, options), tokenizer)


def write(
    model: nn.Module, batch: Mapping[str, Tensor], tokenizer: Any, max_new_tokens: int, stop: str = "", **options: Any
) -> list[str]:
    """One text per row of a collated batch, whichever of the two kinds of model it is; it ends in front of `stop`."""
    if stop:
        options = {"stopping_criteria": [stopped(stop, tokenizer)], **options}
    if getattr(inner(model).config, "is_encoder_decoder", False):
        made = transform(model, batch, tokenizer, max_new_tokens, **options)
    else:
        made = continue_prompts(model, prompts(batch), tokenizer, max_new_tokens, **options)
    return [text.partition(stop)[0].rstrip() for text in made] if stop else made


def stopped(stop: str, tokenizer: Any) -> Callable[..., Tensor]:
    """Which rows have written `stop`, as transformers' `generate` asks after each token. Only the last tokens are read,
    none of what was there at the first question but its last."""
    start: list[int] = []

    def done(ids: Tensor, scores: Any, **options: Any) -> Tensor:
        start[:] = start or [ids.shape[1] - 1]
        last = ids[:, max(start[0], ids.shape[1] - len(stop) - TAIL) :]
        texts = tokenizer.batch_decode(last.tolist(), skip_special_tokens=True)
        return torch.tensor([stop in text for text in texts], device=ids.device)

    return done


def run(model: nn.Module, ids: Tensor, mask: Tensor, pad: int, new: int, options: dict[str, Any]) -> Tensor:
    base = inner(model)
    device = next(base.parameters()).device
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": pad, "max_new_tokens": new, **options}
    with few_rows(base), together(base):
        made: Tensor = base.generate(input_ids=ids.to(device), attention_mask=mask.to(device), **settings)  # type: ignore[operator]
    return made


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """Give the output head the last states in one piece: of a slice of them torch copies a frozen head for each row."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None:
        yield
        return
    fresh = torch.contiguous_format  # `contiguous()` leaves a slice of one row as it is, whose strides torch looks at
    hook = head.register_forward_pre_hook(lambda _, args: (args[0].clone(memory_format=fresh), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(batch, longest) ids and mask of ragged rows, padding in front."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def decoded(ids: Tensor, tokenizer: Any) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(ids.tolist(), skip_special_tokens=True)]
