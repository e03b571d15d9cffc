"""A text and its choices to token ids, the way the model will read them.

decoder            [start] text │ choice [eos]        every choice as what the tokenizer adds behind the text
encoder-decoder    text [eos]   │ choice [eos]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from featherweight.core.errors import Problem, raise_all
from featherweight.data.encode import answer_ids, eos_id, ids_of, limited, start_ids
from featherweight.data.types import Encoded, Example

Ids = list[int]


def encode_after(examples: Sequence[Example], tokenizer: Any, length: int | None, end: bool) -> list[Encoded]:
    """For decoders. A space keeps text and choice apart where neither brings white space; texts that leave no room
    lose their oldest tokens, never the start."""
    eos, start = [eos_id(tokenizer)] if end else [], start_ids(tokenizer)
    pairs = [(e.text, gap(e.text, c) + c) for e in examples for c in e.choices]
    found = iter(answer_ids(tokenizer, pairs))
    made = []
    for e in examples:
        both = [next(found) for _ in e.choices]
        made.append(fitted(e, start, both[0][0], [[*choice, *eos] for _, choice in both], length))
    return checked(made)


def encode_beside(examples: Sequence[Example], tokenizer: Any, length: int | None, end: bool) -> list[Encoded]:
    """For encoder-decoders: text and choices apart, each at most `length`; a text loses its oldest tokens here too, for
    prompts end with what they ask."""
    eos = [eos_id(tokenizer)] if end else []
    found = iter(ids_of(tokenizer, [c.strip() for e in examples for c in e.choices]))
    made = []
    for e in examples:
        with cut_in_front(tokenizer):
            text, cut = limited(tokenizer, (e.text,), length)
        choices = [[*next(found), *eos] for _ in e.choices]
        lost = sum(max(0, len(ids) - length) for ids in choices) if length is not None else 0
        choices = [ids[:length] for ids in choices]
        made.append(Encoded(e.where, text["input_ids"], e.label, None, cut + lost, e.source, choices))
    return checked(made)


@contextmanager
def cut_in_front(tokenizer: Any) -> Iterator[None]:
    """The tokenizer keeps the ends of long texts; afterwards it is as it was."""
    side = getattr(tokenizer, "truncation_side", "right")
    tokenizer.truncation_side = "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = side


def gap(text: str, choice: str) -> str:
    return "" if text[-1:].isspace() or choice[:1].isspace() else " "


def fitted(example: Example, start: Ids, text: Ids, choices: list[Ids], length: int | None) -> Encoded:
    """At most `length` tokens with the longest choice; a choice keeps at most three quarters of them."""
    room = max(length - length // 4, 1) if length is not None else None
    lost = sum(max(0, len(ids) - room) for ids in choices) if room is not None else 0
    choices = [ids[:room] for ids in choices]
    front = [*start, *text]
    excess = max(0, len(front) + max(map(len, choices)) - length) if length is not None else 0
    kept = [*start, *text[excess:]]
    return Encoded(example.where, kept, example.label, None, excess + lost, example.source, choices)


def checked(items: list[Encoded]) -> list[Encoded]:
    """Raise InputError where a text or a choice has no token, and where cutting left two choices alike."""
    problems = [Problem("no token to start from", i.where, "a text") for i in items if not i.input_ids]
    problems += [Problem("a choice without tokens", i.where, "a text") for i in items if not all(i.choices or [])]
    problems += [
        Problem(
            "choices that the model cannot tell apart", i.where, "different tokens", fix="raise length, or rephrase"
        )
        for i in items
        if len(set(map(tuple, i.choices or []))) < len(i.choices or [])
    ]
    raise_all(problems)
    return [replace(i, labels=int(i.labels)) if i.labels is not None else i for i in items]
